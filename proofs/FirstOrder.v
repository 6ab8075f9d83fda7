(* The paper's first order: Lemma 3.1, Theorem 3.2, Theorem 3.3 and Corollary 3.4. *)
From Coq Require Import Reals Lra List.
From Coquelicot Require Import Coquelicot.
From EntropyTheory Require Import Sums Calculus Policy Discriminant Gradient.
Open Scope R_scope.

Section FirstOrder.
Context {V : vocabulary}.
Implicit Types (z p : V -> R) (i k : V).

(* Lemma 3.1. Raising z_k moves p_k by p_k (1 − p_k), and every other p_i by −p_i p_k. *)
Theorem lemma_3_1_same z k :
  is_derive (fun t => softmax (step z t (unit_vector k)) k) 0 (softmax z k * (1 - softmax z k)).
Proof.
  eapply derive_eq; [apply (softmax_derive (fun t => step z t (unit_vector k)) (unit_vector k) 0), step_velocity|].
  rewrite mean_unit_vector, unit_vector_same, !softmax_step_0. reflexivity.
Qed.
Theorem lemma_3_1_other z k i : i <> k ->
  is_derive (fun t => softmax (step z t (unit_vector k)) i) 0 (- softmax z i * softmax z k).
Proof.
  intros D. eapply derive_eq; [apply (softmax_derive (fun t => step z t (unit_vector k)) (unit_vector k) 0), step_velocity|].
  rewrite mean_unit_vector, unit_vector_other, !softmax_step_0 by easy. ring.
Qed.

(* Theorem 3.2. Along e_k the slope of H is −S_k, and S_k is positive iff p_k > e^{−H}. *)
Theorem theorem_3_2 z k :
  is_derive (fun eps => entropy (softmax (step z eps (unit_vector k)))) 0 (- discriminant (softmax z) k).
Proof. apply entropy_partial_derivative. Qed.
Theorem theorem_3_2_sign p k : 0 < p k -> (0 < discriminant p k <-> exp (- entropy p) < p k)
  /\ (discriminant p k < 0 <-> p k < exp (- entropy p)).
Proof.
  intros P. unfold discriminant. assert (E : p k = exp (ln (p k))) by (symmetry; now apply exp_ln).
  split; split; intros H.
  - rewrite E. apply exp_increasing. destruct (Rle_lt_dec (entropy p + ln (p k)) 0); [nra|lra].
  - rewrite E in H at 1. apply exp_lt_inv in H. apply Rmult_lt_0_compat; lra.
  - rewrite E. apply exp_increasing. destruct (Rle_lt_dec 0 (entropy p + ln (p k))); [nra|lra].
  - rewrite E in H at 1. apply exp_lt_inv in H. nra.
Qed.

(* Theorem 3.3. Along the GRPO direction e_k − p the slope of H is −(S_k − N). *)
Theorem theorem_3_3 z k :
  is_derive (fun alpha => entropy (softmax (step z alpha (fun i => unit_vector k i - softmax z i)))) 0
    (- (discriminant (softmax z) k - baseline (softmax z))).
Proof.
  eapply derive_eq; [apply entropy_gradient|]. f_equal.
  rewrite (Sum_ext _ (fun i => unit_vector k i * discriminant (softmax z) i - softmax z i * discriminant (softmax z) i)) by (intros; ring).
  rewrite Sum_minus, sum_unit_vector. reflexivity.
Qed.

(* Corollary 3.4. The centred discriminant of a sampled token has mean zero. *)
Theorem corollary_3_4 p : total p = 1 -> Σ k, p k * centred_discriminant p k = 0.
Proof.
  intros T. unfold centred_discriminant.
  rewrite (Sum_ext _ (fun k => p k * discriminant p k - p k * baseline p)) by (intros; ring).
  rewrite Sum_minus, Sum_scal_r, T. unfold baseline, mean. ring.
Qed.
End FirstOrder.
