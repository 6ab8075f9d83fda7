(* B.1, algebra: S_i = p_i (z_i − E_p z), the discriminants sum to zero, S_i = Cov_p(e_i, log p), N = Cov_p(p, log p). *)
From Coq Require Import Reals Lra List.
From Coquelicot Require Import Coquelicot.
From EntropyTheory Require Import Sums Calculus Policy.
Open Scope R_scope.

Section Discriminant.
Context {V : vocabulary}.
Implicit Types (z d p f : V -> R) (i k : V).

Lemma entropy_is_mean p : entropy p = - mean p (fun i => ln (p i)).
Proof. reflexivity. Qed.
Lemma entropy_softmax z : entropy (softmax z) = ln (Σ j, exp (z j)) - mean (softmax z) z.
Proof.
  unfold entropy, mean.
  rewrite (Sum_ext _ (fun i => softmax z i * z i - softmax z i * ln (Σ j, exp (z j)))) by (intros; rewrite ln_softmax; ring).
  rewrite Sum_minus, Sum_scal_r, softmax_total. ring.
Qed.

(* S_i is the logit above the mean logit, times the probability. *)
Theorem discriminant_in_logits z i : discriminant (softmax z) i = softmax z i * (z i - mean (softmax z) z).
Proof. unfold discriminant. rewrite entropy_softmax, ln_softmax. ring. Qed.

(* Σ_i d_i S_i = Cov_p(d, log p) for every direction d. *)
Lemma discriminant_along p d : total p = 1 -> Σ i, d i * discriminant p i = covariance p d (fun i => ln (p i)).
Proof.
  intros T. unfold discriminant, covariance, mean, entropy.
  rewrite (Sum_ext _ (fun i => p i * d i * (- Σ j, p j * ln (p j)) + p i * (d i * ln (p i)))) by (intros; ring).
  rewrite Sum_plus, Sum_scal_r. ring.
Qed.
Theorem discriminants_sum_to_zero p : total p = 1 -> Σ i, discriminant p i = 0.
Proof.
  intros T. unfold discriminant.
  rewrite (Sum_ext _ (fun i => p i * entropy p + p i * ln (p i))) by (intros; ring).
  rewrite Sum_plus, Sum_scal_r, T. unfold entropy. ring.
Qed.
Lemma baseline_is_covariance p : total p = 1 -> baseline p = covariance p p (fun i => ln (p i)).
Proof. intros T. rewrite <- discriminant_along by easy. reflexivity. Qed.
Lemma discriminant_is_covariance p k : total p = 1 -> discriminant p k = covariance p (unit_vector k) (fun i => ln (p i)).
Proof. intros T. rewrite <- discriminant_along by easy. now rewrite sum_unit_vector. Qed.
(* S_k − λ N = Cov_p(e_k − λ p, log p); for λ = 1 it is S_c. *)
Lemma discriminant_towards p k lam : total p = 1 ->
  Σ i, towards k lam p i * discriminant p i = discriminant p k - lam * baseline p.
Proof.
  intros T. unfold towards.
  rewrite (Sum_ext _ (fun i => unit_vector k i * discriminant p i - lam * (p i * discriminant p i))) by (intros; ring).
  rewrite Sum_minus, Sum_scal, sum_unit_vector. reflexivity.
Qed.
End Discriminant.
