(* T4 on whole responses with a 0/1 reward R = 1_K. Here a `token` is one response from a finite set.

   The policy π ∝ π_0 e^{R/β} is the optimum of KL-regularised reinforcement learning. Its entropy is
   h(Q) + Q H_right + (1 − Q) H_wrong in its pass rate Q, where H_right and H_wrong are the entropies of π_0 given that
   the response is right and wrong; this rises in Q iff Q < σ(H_right − H_wrong). *)
From Coq Require Import Reals Lra Psatz List.
From Coquelicot Require Import Coquelicot.
From EntropyTheory Require Import Sums Calculus Policy Discriminant Mixture TwoValued.
Open Scope R_scope.

(* For any reward: π = softmax(z_0 + R/β) is the one maximiser of E_π R − β KL(π ‖ π_0). *)
Theorem kl_regularised_optimum {V : vocabulary} (z : V -> R) (reward : V -> R) (beta : R) (pi : V -> R) :
  0 < beta -> policy pi ->
  let pi_0 := softmax z in
  let best := softmax (step z (/ beta) reward) in
  let objective pi := mean pi reward - beta * KL pi pi_0 in
  objective pi <= objective best /\ (objective pi = objective best -> forall i, pi i = best i).
Proof.
  intros B P pi_0 best objective. set (c := ln (Σ j, softmax z j * exp (/ beta * reward j))).
  assert (N : 0 < Σ j, softmax z j * exp (/ beta * reward j)).
  { apply Sum_pos; [apply tokens_nonempty|]. intros j _. apply Rmult_lt_0_compat; [apply softmax_pos|apply exp_pos]. }
  assert (L : forall i, ln (best i) = ln (pi_0 i) + / beta * reward i - c).
  { intros i. unfold best. rewrite softmax_step. unfold Rdiv. assert (S := softmax_pos z i).
    rewrite ln_mult, ln_mult, ln_exp, ln_Rinv by (easy || apply exp_pos || now apply Rinv_0_lt_compat || (apply Rmult_lt_0_compat; [easy|apply exp_pos])).
    unfold c, pi_0. ring. }
  assert (E : forall r, total r = 1 -> objective r = beta * c - beta * KL r best).
  { intros r T. unfold objective, KL, mean.
    rewrite (Sum_ext (fun i => r i * (ln (r i) - ln (best i)))
      (fun i => r i * (ln (r i) - ln (pi_0 i)) - / beta * (r i * reward i) + r i * c)) by (intros; rewrite L; ring).
    rewrite Sum_plus, Sum_minus, Sum_scal, Sum_scal_r, T. field. lra. }
  assert (Q : policy best) by apply softmax_policy.
  assert (Self : KL best best = 0) by (apply Sum_zero; intros; ring).
  rewrite (E pi (proj2 P)), (E best (proj2 Q)), Self. assert (G := KL_nonneg pi best P Q). split; [nra|].
  intros H. apply KL_zero; [easy|easy|]. apply (Rmult_eq_reg_l beta); lra.
Qed.

Section PassRate.
Context {V : vocabulary}.
Variables (z : V -> R) (right : V -> bool).
Hypothesis some_right : exists i, right i = true.
Hypothesis some_wrong : exists i, right i = false.

Let pi_0 := softmax z.
Let optimum beta := softmax (step z (/ beta) (indicator right)). (* ∝ π_0 e^{R/β} *)
Let pass beta := mass right (optimum beta).
Let H_right := entropy (conditional right pi_0).
Let H_wrong := entropy (conditional (outside right) pi_0).

Theorem pass_rate_law beta :
  entropy (optimum beta) = binary_entropy (pass beta) + pass beta * H_right + (1 - pass beta) * H_wrong.
Proof. apply (entropy_in_the_pass_rate z right some_right some_wrong). Qed.
Theorem pass_rate_of_the_optimum beta : pass beta = sigmoid (logit (mass right pi_0) + / beta).
Proof. apply (pass_rate z right some_right some_wrong). Qed.
(* In the pass rate entropy has slope H_right − H_wrong − logit Q, positive iff Q < σ(H_right − H_wrong). *)
Theorem entropy_slope_in_the_pass_rate Q : 0 < Q < 1 ->
  is_derive (fun Q => binary_entropy Q + Q * H_right + (1 - Q) * H_wrong) Q (H_right - H_wrong - logit Q)
  /\ (0 < H_right - H_wrong - logit Q <-> Q < sigmoid (H_right - H_wrong)).
Proof. intros H. split; [now apply mixture_derive|now apply mixture_rises_iff]. Qed.
(* Less regularisation, higher pass rate, and more or less entropy on the two sides of σ(H_right − H_wrong). *)
Theorem entropy_rises_below_the_threshold beta beta' : pass beta < pass beta' -> pass beta' <= sigmoid (H_right - H_wrong) ->
  entropy (optimum beta) < entropy (optimum beta').
Proof.
  intros L U. rewrite !pass_rate_law. apply mixture_increasing; [|easy|easy].
  unfold pass, optimum. now apply mass_range.
Qed.
Theorem entropy_falls_above_the_threshold beta beta' : sigmoid (H_right - H_wrong) <= pass beta -> pass beta < pass beta' ->
  entropy (optimum beta') < entropy (optimum beta).
Proof.
  intros U L. rewrite !pass_rate_law. apply mixture_decreasing; [easy|easy|].
  unfold pass, optimum. now apply mass_range.
Qed.
End PassRate.
