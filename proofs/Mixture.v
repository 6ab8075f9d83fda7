(* The entropy of a mixture of two parts with entropies a and b, as a function of the weight Q of the first:

       M(Q) = h(Q) + Q a + (1 − Q) b,   h the binary entropy,

   and with Q = σ(y): F(y) = M(σ(y)) = log(1 + e^y) − σ(y) (y + b − a) + b, F'(y) = −σ(y) (1 − σ(y)) (y + b − a). *)
From Coq Require Import Reals Lra Psatz List.
From Coquelicot Require Import Coquelicot.
From EntropyTheory Require Import Sums Calculus.
Open Scope R_scope.

Definition logit (Q : R) : R := ln Q - ln (1 - Q).
Definition sigmoid (y : R) : R := exp y / (1 + exp y).
Definition binary_entropy (Q : R) : R := - (Q * ln Q + (1 - Q) * ln (1 - Q)).
Definition mixture_entropy (a b Q : R) : R := binary_entropy Q + Q * a + (1 - Q) * b.

Lemma one_plus_exp_pos y : 0 < 1 + exp y.
Proof. assert (E := exp_pos y). lra. Qed.
Lemma one_minus_sigmoid y : 1 - sigmoid y = / (1 + exp y).
Proof. assert (P := one_plus_exp_pos y). unfold sigmoid. field. lra. Qed.
Lemma sigmoid_range y : 0 < sigmoid y < 1.
Proof.
  assert (P := one_plus_exp_pos y). split; [apply Rdiv_lt_0_compat; [apply exp_pos|easy]|].
  enough (0 < 1 - sigmoid y) by lra. rewrite one_minus_sigmoid. now apply Rinv_0_lt_compat.
Qed.
Lemma ln_sigmoid y : ln (sigmoid y) = y - ln (1 + exp y).
Proof.
  assert (P := one_plus_exp_pos y). unfold sigmoid, Rdiv.
  rewrite ln_mult, ln_exp, ln_Rinv by (easy || apply exp_pos || now apply Rinv_0_lt_compat). ring.
Qed.
Lemma ln_one_minus_sigmoid y : ln (1 - sigmoid y) = - ln (1 + exp y).
Proof. rewrite one_minus_sigmoid, ln_Rinv by apply one_plus_exp_pos. reflexivity. Qed.
Lemma logit_sigmoid y : logit (sigmoid y) = y.
Proof. unfold logit. rewrite ln_sigmoid, ln_one_minus_sigmoid. ring. Qed.
Lemma exp_logit Q : 0 < Q < 1 -> exp (logit Q) = Q / (1 - Q).
Proof. intros [Q0 Q1]. apply exp_of_log_ratio; lra. Qed.
Lemma sigmoid_logit Q : 0 < Q < 1 -> sigmoid (logit Q) = Q.
Proof. intros H. unfold sigmoid. rewrite exp_logit by easy. field. lra. Qed.
(* σ(logit P + ε) = P e^ε / (1 + P (e^ε − 1)) *)
Lemma sigmoid_shifted P eps : 0 < P < 1 -> sigmoid (logit P + eps) = P * exp eps / (1 + P * (exp eps - 1)).
Proof.
  intros H. assert (E := exp_pos eps). unfold sigmoid. rewrite exp_plus, exp_logit by easy. field.
  assert (0 < P * exp eps) by (apply Rmult_lt_0_compat; lra). lra.
Qed.
Lemma sigmoid_increasing s t : s < t -> sigmoid s < sigmoid t.
Proof.
  intros L. assert (E := exp_increasing s t L). assert (S := one_plus_exp_pos s). assert (T := one_plus_exp_pos t).
  enough (1 - sigmoid t < 1 - sigmoid s) by lra. rewrite !one_minus_sigmoid. apply Rinv_lt_contravar; [nra|lra].
Qed.
Lemma logit_increasing Q Q' : 0 < Q -> Q < Q' -> Q' < 1 -> logit Q < logit Q'.
Proof.
  intros A L B. assert (ln Q < ln Q') by (apply ln_increasing; lra). assert (ln (1 - Q') < ln (1 - Q)) by (apply ln_increasing; lra).
  unfold logit. lra.
Qed.

Section Mixture.
Variables a b : R.

(* In the weight Q: M' = a − b − logit Q, positive iff Q < σ(a − b). *)
Theorem mixture_derive Q : 0 < Q < 1 -> is_derive (mixture_entropy a b) Q (a - b - logit Q).
Proof.
  intros H. unfold mixture_entropy, binary_entropy, logit. auto_derive; [lra|]. fold (1 - Q). field. lra.
Qed.
Theorem mixture_rises_iff Q : 0 < Q < 1 -> (0 < a - b - logit Q <-> Q < sigmoid (a - b)).
Proof.
  intros H. assert (R := sigmoid_range (a - b)). split; intros L.
  - rewrite <- (sigmoid_logit Q) by easy. apply sigmoid_increasing. lra.
  - enough (logit Q < a - b) by lra. rewrite <- (logit_sigmoid (a - b)). apply logit_increasing; lra.
Qed.
Theorem mixture_increasing Q Q' : 0 < Q -> Q < Q' -> Q' <= sigmoid (a - b) -> mixture_entropy a b Q < mixture_entropy a b Q'.
Proof.
  intros P L U. assert (R := sigmoid_range (a - b)).
  apply (increasing_from_derivative (mixture_entropy a b) (fun u => a - b - logit u) Q Q' L).
  - intros u I. apply mixture_derive. lra.
  - intros u I. apply mixture_rises_iff; lra.
Qed.
Theorem mixture_decreasing Q Q' : sigmoid (a - b) <= Q -> Q < Q' -> Q' < 1 -> mixture_entropy a b Q' < mixture_entropy a b Q.
Proof.
  intros P L U. assert (R := sigmoid_range (a - b)).
  apply (decreasing_from_derivative (mixture_entropy a b) (fun u => a - b - logit u) Q Q' L).
  - intros u I. apply mixture_derive. lra.
  - intros u I. enough (a - b < logit u) by lra. rewrite <- (logit_sigmoid (a - b)). apply logit_increasing; lra.
Qed.

(* In the logit y of the weight. *)
Definition F (y : R) : R := mixture_entropy a b (sigmoid y).
Lemma F_is y : F y = ln (1 + exp y) - sigmoid y * (y + b - a) + b.
Proof. unfold F, mixture_entropy, binary_entropy. rewrite ln_sigmoid, ln_one_minus_sigmoid. ring. Qed.
Definition slope (y : R) : R := sigmoid y * (1 - sigmoid y).
Lemma slope_pos y : 0 < slope y.
Proof. assert (R := sigmoid_range y). unfold slope. nra. Qed.
Lemma sigmoid_derive y : is_derive sigmoid y (slope y).
Proof. assert (P := one_plus_exp_pos y). unfold slope, sigmoid. auto_derive; [lra|]. field. lra. Qed.
Lemma F_derive y : is_derive F y (- (slope y * (y + b - a))).
Proof.
  assert (P := one_plus_exp_pos y). apply (is_derive_ext (fun u => ln (1 + exp u) - sigmoid u * (u + b - a) + b)).
  - intros. symmetry. apply F_is.
  - eapply derive_eq.
    + apply (derive_plus (fun u => ln (1 + exp u) - sigmoid u * (u + b - a)) (fun _ => b)); [|apply (is_derive_const b y)].
      apply (derive_minus (fun u => ln (1 + exp u)) (fun u => sigmoid u * (u + b - a))).
      * apply (derive_ln (fun u => 1 + exp u)); [easy|]. instantiate (1 := exp y). auto_derive; [easy|ring].
      * apply (derive_mult sigmoid (fun u => u + b - a)); [apply sigmoid_derive|]. instantiate (1 := 1). auto_derive; [easy|ring].
    + unfold zero; simpl. unfold sigmoid, slope. unfold sigmoid. field. lra.
Qed.
Lemma F_increasing s t : s < t -> t <= a - b -> F s < F t.
Proof.
  intros L U. apply (increasing_from_derivative F _ s t L (fun u _ => F_derive u)).
  intros u I. assert (S := slope_pos u). nra.
Qed.
Lemma F_decreasing s t : s < t -> a - b <= s -> F t < F s.
Proof.
  intros L U. apply (decreasing_from_derivative F _ s t L (fun u _ => F_derive u)).
  intros u I. assert (S := slope_pos u). nra.
Qed.
Lemma F_peak_value : F (a - b) = ln (exp a + exp b).
Proof.
  rewrite F_is. replace (sigmoid (a - b) * (a - b + b - a)) with 0 by ring.
  replace (exp a + exp b) with ((1 + exp (a - b)) * exp b).
  - rewrite ln_mult, ln_exp by (apply one_plus_exp_pos || apply exp_pos). ring.
  - unfold Rminus. rewrite exp_plus, exp_Ropp. assert (E := exp_pos b). field. lra.
Qed.
Lemma F_below_peak y : y <> a - b -> F y < F (a - b).
Proof.
  intros N. destruct (Rtotal_order y (a - b)) as [L|[E|G]]; [|easy|]; [apply F_increasing|apply F_decreasing]; lra.
Qed.

(* For a <= b the fall beyond the peak is at least as fast as the rise before it. *)
Lemma exp_ge_2 y : 2 <= exp y + exp (- y).
Proof.
  assert (P := exp_pos y). rewrite exp_Ropp. enough (0 <= (exp y - 1) * (exp y - 1) / exp y) as N.
  { replace (exp y + / exp y) with ((exp y - 1) * (exp y - 1) / exp y + 2) by (field; lra). lra. }
  apply Rmult_le_pos; [apply Rle_0_sqr|left; now apply Rinv_0_lt_compat].
Qed.
Lemma slope_is y : slope y = / (2 + (exp y + exp (- y))).
Proof. assert (E := exp_pos y). unfold slope. rewrite one_minus_sigmoid. unfold sigmoid. rewrite exp_Ropp. field. split; nra. Qed.
Lemma cosh_grows s t : 0 <= s <= t -> exp s + exp (- s) <= exp t + exp (- t).
Proof.
  intros [S0 L]. apply (nondecreasing_from_derivative (fun u => exp u + exp (- u)) (fun u => exp u - exp (- u))); [easy| |].
  - intros u _. auto_derive; [easy|ring].
  - intros u U. enough (exp (- u) <= exp u) by lra. destruct (Req_dec u 0) as [->|]; [rewrite Ropp_0; lra|].
    left. apply exp_increasing. lra.
Qed.
Lemma slope_falls s t : Rabs s <= Rabs t -> slope t <= slope s.
Proof.
  intros L. rewrite !slope_is. assert (S := exp_ge_2 s).
  apply Rinv_le_contravar; [lra|]. apply Rplus_le_compat_l.
  assert (E : forall u, exp u + exp (- u) = exp (Rabs u) + exp (- Rabs u)).
  { intros u. unfold Rabs. destruct (Rcase_abs u); [rewrite Ropp_involutive; ring|easy]. }
  rewrite (E s), (E t). apply cosh_grows. split; [apply Rabs_pos|easy].
Qed.
Lemma F_lopsided s : a <= b -> 0 <= s -> F (a - b + s) <= F (a - b - s).
Proof.
  intros O S. enough (- (F (a - b - 0) - F (a - b + 0)) <= F (a - b - s) - F (a - b + s)) as N.
  { rewrite Rminus_0_r, Rplus_0_r in N. lra. }
  replace (- (F (a - b - 0) - F (a - b + 0))) with (F (a - b - 0) - F (a - b + 0)) by (rewrite Rminus_0_r, Rplus_0_r; ring).
  apply (nondecreasing_from_derivative (fun u => F (a - b - u) - F (a - b + u))
    (fun u => u * (slope (a - b + u) - slope (a - b - u)))); [easy| |].
  - intros u _. eapply derive_eq.
    + apply (derive_minus (fun u => F (a - b - u)) (fun u => F (a - b + u))).
      * apply (is_derive_comp F (fun u => a - b - u)); [apply F_derive|]. instantiate (1 := -1). auto_derive; [easy|ring].
      * apply (is_derive_comp F (fun u => a - b + u)); [apply F_derive|]. instantiate (1 := 1). auto_derive; [easy|ring].
    + unfold scal; simpl; unfold mult; simpl. ring.
  - intros u U. apply Rmult_le_pos; [lra|]. enough (slope (a - b - u) <= slope (a - b + u)) by lra. apply slope_falls.
    unfold Rabs. destruct (Rcase_abs (a - b + u)), (Rcase_abs (a - b - u)); lra.
Qed.
(* On the left F stays above b up to the peak, and comes down to b. *)
Lemma F_above_b y : y <= a - b -> b < F y.
Proof.
  intros L. rewrite F_is. assert (R := sigmoid_range y). assert (0 < ln (1 + exp y)).
  { rewrite <- ln_1. assert (E := exp_pos y). apply ln_increasing; lra. }
  assert (sigmoid y * (y + b - a) <= 0) by nra. lra.
Qed.
Lemma F_continuous : Ranalysis1.continuity F.
Proof. intros y. apply continuity_pt_filterlim. apply (ex_derive_continuous F). eexists. apply F_derive. Qed.
(* e^{−s} <= 1/s and s e^{−s} <= 4/s bound F at −s. *)
Lemma F_left_limit s : 0 < s -> a - b <= s -> F (- s) <= b + 9 / s.
Proof.
  intros S C. rewrite F_is. assert (R := sigmoid_range (- s)). assert (E := exp_pos s).
  assert (L1 : ln (1 + exp (- s)) <= exp (- s)).
  { assert (P := exp_pos (- s)). assert (G : ln (1 + exp (- s)) <= ln (exp (exp (- s)))); [|now rewrite ln_exp in G].
    destruct (exp_ineq1_le (exp (- s))) as [L|Eq]; [left; apply ln_increasing; lra|rewrite Eq; lra]. }
  assert (X : exp (- s) <= / s /\ s * exp (- s) <= 4 / s).
  { assert (H1 := exp_ineq1_le s). rewrite exp_Ropp. assert (H2 : 1 + s / 2 <= exp (s / 2)) by (apply exp_ineq1_le).
    assert (H3 : s * s / 4 <= exp s).
    { replace (exp s) with (exp (s / 2) * exp (s / 2)) by (rewrite <- exp_plus; f_equal; lra).
      assert (0 <= (1 + s / 2) * (exp (s / 2) - (1 + s / 2))) by (apply Rmult_le_pos; lra).
      assert (0 <= exp (s / 2) * (exp (s / 2) - (1 + s / 2))) by (apply Rmult_le_pos; [left; apply exp_pos|lra]). nra. }
    split; [apply Rinv_le_contravar; lra|].
    apply Rmult_le_reg_r with (exp s * s); [nra|]. field_simplify; [|lra|lra]. nra. }
  assert (Y : sigmoid (- s) <= exp (- s)).
  { unfold sigmoid, Rdiv. assert (P := exp_pos (- s)). assert (I : / (1 + exp (- s)) <= / 1) by (apply Rinv_le_contravar; lra).
    rewrite Rinv_1 in I. nra. }
  assert (Z : - (sigmoid (- s) * (- s + b - a)) <= 2 * (s * exp (- s))).
  { assert (W : s + a - b <= 2 * s) by lra. destruct (Rle_lt_dec 0 (s + a - b)).
    - assert (sigmoid (- s) * (s + a - b) <= exp (- s) * (2 * s)) by (apply Rmult_le_compat; lra). lra.
    - assert (0 <= s * exp (- s)) by (apply Rmult_le_pos; [lra|left; apply exp_pos]). nra. }
  replace (9 / s) with (/ s + 2 * (4 / s)) by (field; lra). lra.
Qed.

(* The other point at the height of y, beyond the peak (y left of it) and before it (y right of it and F y > b). *)
Lemma root_beyond_peak y : a <= b -> y < a - b -> exists r, a - b < r <= 2 * (a - b) - y /\ F r = F y.
Proof.
  intros O L. assert (S := F_lopsided (a - b - y) O). assert (U := F_increasing y (a - b) L (Rle_refl _)).
  replace (a - b + (a - b - y)) with (2 * (a - b) - y) in S by ring. replace (a - b - (a - b - y)) with y in S by ring.
  destruct (IVT_gen F (a - b) (2 * (a - b) - y) (F y) F_continuous) as [r [R E]].
  - rewrite Rmin_right, Rmax_left by lra. lra.
  - rewrite Rmin_left, Rmax_right in R by lra. exists r. split; [|easy]. split; [|lra].
    destruct (Req_dec r (a - b)) as [Z|]; [rewrite Z in E; lra|lra].
Qed.
Lemma root_before_peak y : a <= b -> a - b < y -> b < F y -> exists r, r < a - b /\ r <= 2 * (a - b) - y /\ F r = F y.
Proof.
  intros O L H. set (s := Rmax (b - a + 1) (9 / (F y - b))).
  assert (S1 : b - a + 1 <= s) by apply Rmax_l. assert (S2 : 9 / (F y - b) <= s) by apply Rmax_r.
  assert (Low : F (- s) <= F y).
  { apply Rle_trans with (b + 9 / s); [apply F_left_limit; lra|]. enough (9 / s <= F y - b) by lra.
    apply Rmult_le_reg_r with s; [lra|]. unfold Rdiv. rewrite Rmult_assoc, Rinv_l, Rmult_1_r by lra.
    apply (Rmult_le_compat_l (F y - b)) in S2; [|lra]. unfold Rdiv in S2. replace ((F y - b) * (9 * / (F y - b))) with 9 in S2 by (field; lra). lra. }
  assert (U := F_decreasing (a - b) y L (Rle_refl _)).
  destruct (IVT_gen F (- s) (a - b) (F y) F_continuous) as [r [R E]].
  - rewrite Rmin_left, Rmax_right by lra. lra.
  - rewrite Rmin_left, Rmax_right in R by lra. assert (N : r <> a - b) by (intros Z; rewrite Z in E; lra).
    exists r. split; [lra|]. split; [|easy]. destruct (Rle_lt_dec r (2 * (a - b) - y)) as [|G]; [easy|].
    assert (S := F_lopsided (y - (a - b)) O). replace (a - b + (y - (a - b))) with y in S by ring.
    assert (I := F_increasing (a - b - (y - (a - b))) r). lra.
Qed.
End Mixture.
