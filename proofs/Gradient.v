(* B.1, analysis: ∂H/∂z_i = −S_i, as the chain rule along every differentiable curve of logits. *)
From Coq Require Import Reals Lra List.
From Coquelicot Require Import Coquelicot.
From EntropyTheory Require Import Sums Calculus Policy Discriminant.
Open Scope R_scope.

(* A curve s ↦ z s of logits with velocity v at time t. *)
Section Curve.
Context {V : vocabulary}.
Variables (z : R -> V -> R) (v : V -> R) (t : R).
Hypothesis velocity : forall i, is_derive (fun s => z s i) t (v i).

Let p := softmax (z t).

(* (log p_i)' = v_i − E_p v *)
Lemma ln_softmax_derive i : is_derive (fun s => ln (softmax (z s) i)) t (v i - mean p v).
Proof.
  apply (is_derive_ext (fun s => z s i - ln (Σ j, exp (z s j)))); [intros; symmetry; apply ln_softmax|].
  apply (derive_minus (fun s => z s i) (fun s => ln (Σ j, exp (z s j)))); [apply velocity|].
  eapply derive_eq.
  - apply (derive_ln (fun s => Σ j, exp (z s j))); [apply partition_pos|].
    apply (derive_Sum (fun s j => exp (z s j))). intros j _. apply derive_exp, velocity.
  - unfold mean, p, softmax. rewrite <- Sum_scal_r. apply Sum_ext. intros. unfold Rdiv. ring.
Qed.
(* p_i' = p_i (v_i − E_p v) *)
Lemma softmax_derive i : is_derive (fun s => softmax (z s) i) t (p i * (v i - mean p v)).
Proof.
  apply (is_derive_ext (fun s => exp (ln (softmax (z s) i)))); [intros; apply exp_ln, softmax_pos|].
  eapply derive_eq; [apply derive_exp, ln_softmax_derive|]. cbv beta. rewrite exp_ln by apply softmax_pos. fold p. ring.
Qed.
(* H' = −Σ_i v_i S_i *)
Theorem entropy_chain_rule : is_derive (fun s => entropy (softmax (z s))) t (- Σ i, v i * discriminant p i).
Proof.
  eapply derive_eq.
  - apply (derive_opp (fun s => Σ i, softmax (z s) i * ln (softmax (z s) i))).
    apply (derive_Sum (fun s i => softmax (z s) i * ln (softmax (z s) i))). intros i _.
    apply derive_mult; [apply softmax_derive|apply ln_softmax_derive].
  - cbv beta. fold p. assert (T : total p = 1) by apply softmax_total. rewrite discriminant_along by easy. f_equal.
    rewrite (Sum_ext _ (fun i => p i * (v i * ln (p i)) - mean p v * (p i * ln (p i)) + (p i * v i - mean p v * p i))) by (intros; ring).
    rewrite Sum_plus, !Sum_minus, !Sum_scal, T. unfold covariance, mean. ring.
Qed.
(* S_i' = (v_i − E_p v) S_i + p_i (H' + v_i − E_p v) *)
Lemma discriminant_derive i : is_derive (fun s => discriminant (softmax (z s)) i) t
  ((v i - mean p v) * discriminant p i + p i * (- (Σ j, v j * discriminant p j) + (v i - mean p v))).
Proof.
  unfold discriminant at 1. eapply derive_eq.
  - apply (derive_mult (fun s => softmax (z s) i) (fun s => entropy (softmax (z s)) + ln (softmax (z s) i))); [apply softmax_derive|].
    apply derive_plus; [apply entropy_chain_rule|apply ln_softmax_derive].
  - cbv beta. fold p. unfold discriminant. ring.
Qed.
End Curve.

Section Ray.
Context {V : vocabulary}.
Implicit Types (z d : V -> R) (i k : V).

Lemma step_velocity z d t i : is_derive (fun s => step z s d i) t (d i).
Proof. unfold step. auto_derive; [easy|ring]. Qed.
Lemma step_0 z d i : step z 0 d i = z i.
Proof. unfold step. ring. Qed.
Lemma softmax_step_0 z d i : softmax (step z 0 d) i = softmax z i.
Proof. apply softmax_ext. intros. apply step_0. Qed.
Lemma discriminant_ext (p q : V -> R) i : (forall j, p j = q j) -> discriminant p i = discriminant q i.
Proof. intros E. unfold discriminant. rewrite (E i), (entropy_ext p q E). reflexivity. Qed.

(* The gradient: along z + t d the slope of H at t = 0 is −Σ_i d_i S_i. *)
Theorem entropy_gradient z d :
  is_derive (fun t => entropy (softmax (step z t d))) 0 (- Σ i, d i * discriminant (softmax z) i).
Proof.
  eapply derive_eq; [apply (entropy_chain_rule (fun t => step z t d) d 0), step_velocity|].
  f_equal. apply Sum_ext. intros. f_equal. apply discriminant_ext. apply softmax_step_0.
Qed.
(* The partial derivative: ∂H/∂z_k = −S_k. *)
Theorem entropy_partial_derivative z k :
  is_derive (fun t => entropy (softmax (step z t (unit_vector k)))) 0 (- discriminant (softmax z) k).
Proof. eapply derive_eq; [apply entropy_gradient|]. now rewrite sum_unit_vector. Qed.
End Ray.
