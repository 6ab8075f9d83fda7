#!/bin/sh
# Compile the proofs from scratch, check them with coqchk, and report the axioms of the main theorems.
#
#   check.sh          coqchk re-checks the files of this folder
#   check.sh --full   coqchk re-checks the libraries below them too (about a minute)
#
# Exit status: 0 all proved, 1 something is wrong, 2 Coq or Coquelicot is missing.
set -u
here=$(cd "$(dirname "$0")" && pwd)
install="install them with: apt-get install coq libcoq-coquelicot"
allowed="ClassicalDedekindReals.sig_forall_dec ClassicalDedekindReals.sig_not_dec Classical_Prop.classic FunctionalExtensionality.functional_extensionality_dep"

full=no
case "${1:-}" in
  "") ;;
  --full) full=yes ;;
  *) echo "check.sh: expected no argument or --full, received '$1'" >&2; exit 1 ;;
esac
for tool in coqc coqchk; do
  command -v "$tool" >/dev/null || { echo "check.sh: $tool is missing: the proofs need Coq 8.16 and Coquelicot; $install" >&2; exit 2; }
done

build=$(mktemp -d) || exit 1
trap 'rm -rf "$build"' EXIT
cp "$here"/*.v "$here/_CoqProject" "$build" && cd "$build" || exit 1
fail() { echo "check.sh: $*" >&2; exit 1; }

echo 'From Coquelicot Require Import Coquelicot.' > Installed.v
coqc -q -w none Installed.v >/dev/null 2>&1 || { echo "check.sh: Coquelicot is missing; $install" >&2; exit 2; }
echo "versions: Coq $(coqc -print-version | cut -d' ' -f1), Coquelicot $(dpkg-query -W -f '${Version}' libcoq-coquelicot 2>/dev/null || echo unknown)"

files=$(grep '\.v$' _CoqProject)
for file in "$here"/*.v; do
  echo "$files" | grep -qx "$(basename "$file")" || fail "$(basename "$file") is not listed in _CoqProject"
done
unproved='\b(Admitted|admit|give_up|Axioms?|Parameters?|Conjecture|Abort|bypass_check)\b|Unset +(Guard|Universe|Positivity)'
if grep -nE "$unproved" $(echo "$files" | grep -v '^Axioms\.v$'); then fail "the lines above leave something unproved"; fi

start=$(date +%s)
for file in $files; do
  coqc -q -Q . EntropyTheory -w -ambiguous-paths "$file" > "$file.out" 2> "$file.err" || { cat "$file.err" >&2; fail "$file does not compile"; }
done
echo "compiled: $(echo "$files" | wc -l) files in $(($(date +%s) - start)) s"

# Axioms.v prints one block per file, in the order of its lines; a block is "Axioms:" and their names, or "Closed ...".
sed -n 's/^Print Assumptions of_\(.*\)\.$/\1/p' Axioms.v > names
awk 'NR == FNR { name[NR] = $1; last = NR; next }
     /^Axioms:/ || /^Closed under/ { if (n) print line; n++; line = "axioms of " name[n] ".v:"; next }
     /^[^ ]/ { line = line " " $1 }
     END { print line; if (n != last) exit 1 }' names Axioms.v.out > report || fail "Axioms.v printed another number of blocks than it names"
cat report
for axiom in $(cut -d: -f2 report); do
  case " $allowed " in *" $axiom "*) ;; *) fail "axiom $axiom is not allowed" ;; esac
done

modules=$(for file in $files; do echo "EntropyTheory.${file%.v}"; done)
[ "$full" = yes ] && targets=$modules || targets=$(for module in $modules; do echo "-norec $module"; done)
coqchk -silent -o -Q . EntropyTheory $targets > coqchk.out 2>&1 || { cat coqchk.out >&2; fail "coqchk rejects the compiled proofs"; }
for part in 'type-in-type' 'unsafe (co)fixpoints' 'positivity is assumed'; do
  grep -F "$part: <none>" coqchk.out >/dev/null || { cat coqchk.out >&2; fail "coqchk reports: $part"; }
done
[ "$full" = yes ] && sed -n '/^\* Axioms:/,/^\* Constants.*type-in-type/p' coqchk.out | sed -n 's/^    /coqchk axiom: /p'
echo "coqchk: clean ($([ "$full" = yes ] && echo "these files and all libraries below them" || echo "these files; --full checks the libraries below them too"))"
