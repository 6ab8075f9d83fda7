(* B.3. For any two policies H(q) − H(p) = −Σ (q_i − p_i) log p_i − KL(q ‖ p). *)
From Coq Require Import Reals Lra List.
From Coquelicot Require Import Coquelicot.
From EntropyTheory Require Import Sums Calculus Policy.
Open Scope R_scope.

Theorem exact_identity {V : vocabulary} (p q : V -> R) :
  entropy q - entropy p = - (Σ i, (q i - p i) * ln (p i)) - KL q p.
Proof.
  unfold entropy, KL.
  rewrite (Sum_ext (fun i => (q i - p i) * ln (p i)) (fun i => q i * ln (p i) - p i * ln (p i))) by (intros; ring).
  rewrite (Sum_ext (fun i => q i * (ln (q i) - ln (p i))) (fun i => q i * ln (q i) - q i * ln (p i))) by (intros; ring).
  rewrite !Sum_minus. ring.
Qed.
