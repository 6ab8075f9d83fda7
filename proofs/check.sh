#!/bin/sh
# Compile the proofs from scratch, check them with coqchk, and report the axioms of the main theorems.
#
#   check.sh          the axioms of all theorems together; coqchk re-checks the files of this folder
#   check.sh --full   the axioms of each theorem; coqchk re-checks the libraries below them too (minutes)
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

# One line per block of Print Assumptions: "Axioms:" and their names, or "Closed under the global context".
# usage: axioms FILE NAMES, the n-th block belonging to the n-th name
axioms() {
  awk 'NR == FNR { name[NR] = $0; last = NR; next }
       /^Axioms:/ || /^Closed under/ { if (n) print line; n++; line = "axioms of " name[n] ":"; next }
       /^[^ ]/ { line = line " " $1 }
       END { print line; if (n != last) exit 1 }' "$2" "$1"
}
sed -n 's/^  [ (]@\([A-Za-z0-9_.]*\)[,)].*/\1/p' Axioms.v > names
sed -n 's/.*"theorem": "\([^"]*\)".*/\1/p' "$here/theorems.json" | diff - names >&2 || fail "theorems.json (<) and Axioms.v (>) name different theorems"
echo "all $(wc -l < names) main theorems together" > together
axioms Axioms.v.out together > report || fail "Axioms.v does not print the axioms of main_theorems"
if [ "$full" = yes ]; then
  { sed -n '/^From/,/\.$/p' Axioms.v; sed 's/.*/Print Assumptions &./' names; } > Each.v
  coqc -q -Q . EntropyTheory -w -ambiguous-paths Each.v > Each.out || fail "the theorems that Axioms.v names do not exist"
  axioms Each.out names >> report || fail "Coq printed the axioms of another number of theorems than Axioms.v names"
fi
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
