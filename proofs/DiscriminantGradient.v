(* B.1: the gradients of S_y and of N, with u = z − E_p z, and the lower bound S >= −e^{−(1+H)}. *)
From Coq Require Import Reals Lra Psatz List.
From Coquelicot Require Import Coquelicot.
From EntropyTheory Require Import Sums Calculus Policy Discriminant Gradient.
Open Scope R_scope.

Section DiscriminantGradient.
Context {V : vocabulary}.
Variables (z : V -> R) (k : V).
Let p := softmax z.
Let u i := z i - mean p z.
Let moved t := softmax (step z t (unit_vector k)).

Lemma S_is_p_u i : discriminant p i = p i * u i.
Proof. apply discriminant_in_logits. Qed.
Lemma S_derive i : is_derive (fun t => discriminant (moved t) i) 0
  (p i * (unit_vector k i * (1 + u i) - p k * (1 + u i + u k))).
Proof.
  eapply derive_eq; [apply (discriminant_derive (fun t => step z t (unit_vector k)) (unit_vector k) 0), step_velocity|].
  assert (E : forall j, discriminant (softmax (step z 0 (unit_vector k))) j = discriminant p j) by (intros; apply discriminant_ext, softmax_step_0).
  rewrite mean_unit_vector, (sum_unit_vector (discriminant (softmax (step z 0 (unit_vector k)))) k), !E, !softmax_step_0.
  fold p. rewrite !S_is_p_u. ring.
Qed.
(* ∂S_y/∂z_k = p_y [1_{y=k} (1 + u_y) − p_k (1 + u_y + u_k)] *)
Theorem discriminant_partial_derivative y : is_derive (fun t => discriminant (moved t) y) 0
  (p y * ((if same_token y k then 1 + u y else 0) - p k * (1 + u y + u k))).
Proof.
  eapply derive_eq; [apply S_derive|]. unfold unit_vector. destruct (same_token y k); ring.
Qed.
(* ∂N/∂z_k = p_k [p_k (1 + 2 u_k) − 2 N − P (1 + u_k)], P = Σ p_i² *)
Theorem baseline_partial_derivative : is_derive (fun t => baseline (moved t)) 0
  (p k * (p k * (1 + 2 * u k) - 2 * baseline p - (Σ i, p i ^ 2) * (1 + u k))).
Proof.
  eapply derive_eq.
  - unfold baseline at 1, mean. apply (derive_Sum (fun t i => moved t i * discriminant (moved t) i)).
    intros i _. apply (derive_mult (fun t => moved t i) (fun t => discriminant (moved t) i)); [|apply S_derive].
    apply (softmax_derive (fun t => step z t (unit_vector k)) (unit_vector k) 0), step_velocity.
  - assert (E : forall j, discriminant (moved 0) j = discriminant p j) by (intros; apply discriminant_ext, softmax_step_0).
    rewrite (Sum_ext _ (fun i => unit_vector k i * (p i * p i * (1 + 2 * u i)) - 2 * p k * (p i * discriminant p i) - p k * (1 + u k) * p i ^ 2)).
    + rewrite !Sum_minus, !Sum_scal, sum_unit_vector. unfold baseline, mean. ring.
    + intros i _. cbv beta. rewrite E. unfold moved. rewrite mean_unit_vector, !softmax_step_0. fold p. rewrite S_is_p_u. ring.
Qed.
End DiscriminantGradient.

(* S_i >= −e^{−(1+H)}, attained iff p_i = e^{−(1+H)}. *)
Theorem discriminant_lower_bound {V : vocabulary} (p : V -> R) i : 0 < p i ->
  - exp (- (1 + entropy p)) <= discriminant p i
  /\ (discriminant p i = - exp (- (1 + entropy p)) <-> p i = exp (- (1 + entropy p))).
Proof.
  intros P. set (b := exp (- (1 + entropy p))). assert (B : 0 < b) by apply exp_pos.
  assert (L : ln b = - (1 + entropy p)) by apply ln_exp.
  assert (S : discriminant p i + b = p i * (ln (p i) - ln b) - (p i - b)) by (unfold discriminant; rewrite L; ring).
  assert (G := Gibbs_term (p i) b P B). split; [lra|]. split; intros E.
  - destruct (Req_dec (p i) b) as [|N]; [easy|]. assert (G' := Gibbs_term_strict (p i) b P B N). lra.
  - rewrite <- E in S at 1. rewrite E in S. lra.
Qed.
