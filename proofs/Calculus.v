(* Monotonicity from the sign of a derivative, derivatives of finite sums, and the inequalities of the logarithm. *)
From Coq Require Import Reals Lra Psatz List.
From Coquelicot Require Import Coquelicot.
From EntropyTheory Require Import Sums.
Open Scope R_scope.

Section Monotone.
Variables f df : R -> R.

Lemma nondecreasing_from_derivative a b : a <= b -> (forall x, a <= x <= b -> is_derive f x (df x)) ->
  (forall x, a <= x <= b -> 0 <= df x) -> f a <= f b.
Proof.
  intros [L| ->] D P; [|lra].
  destruct (MVT_cor2 f df a b L) as [c [E C]]; [intros; apply is_derive_Reals; auto|].
  assert (0 <= df c) by (apply P; lra). nra.
Qed.
(* The sign is needed strictly inside the interval only. *)
Lemma increasing_from_derivative a b : a < b -> (forall x, a <= x <= b -> is_derive f x (df x)) ->
  (forall x, a < x < b -> 0 < df x) -> f a < f b.
Proof.
  intros L D P. destruct (MVT_cor2 f df a b L) as [c [E C]]; [intros; apply is_derive_Reals; auto|].
  assert (0 < df c) by (apply P; lra). nra.
Qed.
Lemma decreasing_from_derivative a b : a < b -> (forall x, a <= x <= b -> is_derive f x (df x)) ->
  (forall x, a < x < b -> df x < 0) -> f b < f a.
Proof.
  intros L D P. destruct (MVT_cor2 f df a b L) as [c [E C]]; [intros; apply is_derive_Reals; auto|].
  assert (df c < 0) by (apply P; lra). nra.
Qed.
End Monotone.

(* f as a function of x, both given along a parameter: f' = s x' with x' > 0. If the slope s grows, chord slopes grow:
   f is a convex function of x. *)
Section Chords.
Variables f x s dx : R -> R.
Hypothesis f_derive : forall t, is_derive f t (s t * dx t).
Hypothesis x_derive : forall t, is_derive x t (dx t).
Hypothesis dx_pos : forall t, 0 < dx t.

Lemma x_increases a b : a < b -> x a < x b.
Proof. intros L. apply (increasing_from_derivative x dx a b L); auto. Qed.
Lemma tangent_derive b t : is_derive (fun u => f u - s b * x u) t ((s t - s b) * dx t).
Proof.
  replace ((s t - s b) * dx t) with (s t * dx t - s b * dx t) by ring.
  apply (is_derive_minus f (fun u => s b * x u)); [apply f_derive|]. exact (is_derive_scal x t (s b) (dx t) (x_derive t)).
Qed.
Lemma convex_chords a b c : a < b < c -> (forall u v, a <= u -> u <= v -> v <= c -> s u <= s v) ->
  (f b - f a) / (x b - x a) <= (f c - f b) / (x c - x b).
Proof.
  intros [L1 L2] M. assert (X1 := x_increases a b L1). assert (X2 := x_increases b c L2). apply Rle_trans with (s b).
  - apply Rmult_le_reg_r with (x b - x a); [lra|]. unfold Rdiv. rewrite Rmult_assoc, Rinv_l, Rmult_1_r by lra.
    enough (- (f a - s b * x a) <= - (f b - s b * x b)) by lra.
    apply (nondecreasing_from_derivative (fun u => - (f u - s b * x u)) (fun t => - ((s t - s b) * dx t))); [lra| |].
    + intros u _. exact (is_derive_opp _ _ _ (tangent_derive b u)).
    + intros u U. assert (s u <= s b) by (apply M; lra). assert (D := dx_pos u). nra.
  - apply Rmult_le_reg_r with (x c - x b); [lra|]. unfold Rdiv. rewrite Rmult_assoc, Rinv_l, Rmult_1_r by lra.
    enough (f b - s b * x b <= f c - s b * x c) by lra.
    apply (nondecreasing_from_derivative (fun u => f u - s b * x u) (fun t => (s t - s b) * dx t)); [lra|intros; apply tangent_derive|].
    intros u U. assert (s b <= s u) by (apply M; lra). assert (D := dx_pos u). nra.
Qed.
Lemma strictly_convex_chords a b c : a < b < c -> (forall u v, a <= u -> u < v -> v <= c -> s u < s v) ->
  (f b - f a) / (x b - x a) < (f c - f b) / (x c - x b).
Proof.
  intros [L1 L2] M. assert (X1 := x_increases a b L1). assert (X2 := x_increases b c L2). apply Rlt_trans with (s b).
  - apply Rmult_lt_reg_r with (x b - x a); [lra|]. unfold Rdiv. rewrite Rmult_assoc, Rinv_l, Rmult_1_r by lra.
    enough (f b - s b * x b < f a - s b * x a) by lra.
    apply (decreasing_from_derivative (fun u => f u - s b * x u) (fun t => (s t - s b) * dx t) a b L1); [intros; apply tangent_derive|].
    intros u U. assert (s u < s b) by (apply M; lra). assert (D := dx_pos u). nra.
  - apply Rmult_lt_reg_r with (x c - x b); [lra|]. unfold Rdiv. rewrite Rmult_assoc, Rinv_l, Rmult_1_r by lra.
    enough (f b - s b * x b < f c - s b * x c) by lra.
    apply (increasing_from_derivative (fun u => f u - s b * x u) (fun t => (s t - s b) * dx t) b c L2); [intros; apply tangent_derive|].
    intros u U. assert (s b < s u) by (apply M; lra). assert (D := dx_pos u). nra.
Qed.
End Chords.

(* Coquelicot's rules with the derivatives written as real products. *)
Lemma derive_scal (c : R) (f : R -> R) (d t : R) : is_derive f t d -> is_derive (fun u => c * f u) t (c * d).
Proof. intros D. exact (is_derive_scal f t c d D). Qed.
Lemma derive_plus (f g : R -> R) (df dg t : R) : is_derive f t df -> is_derive g t dg -> is_derive (fun u => f u + g u) t (df + dg).
Proof. intros F G. exact (is_derive_plus f g t df dg F G). Qed.
Lemma derive_minus (f g : R -> R) (df dg t : R) : is_derive f t df -> is_derive g t dg -> is_derive (fun u => f u - g u) t (df - dg).
Proof. intros F G. exact (is_derive_minus f g t df dg F G). Qed.
Lemma derive_opp (f : R -> R) (df t : R) : is_derive f t df -> is_derive (fun u => - f u) t (- df).
Proof. intros F. exact (is_derive_opp f t df F). Qed.
Lemma derive_mult (f g : R -> R) (df dg t : R) : is_derive f t df -> is_derive g t dg -> is_derive (fun u => f u * g u) t (df * g t + f t * dg).
Proof. intros F G. apply (is_derive_mult f g); [easy|easy|intros; apply Rmult_comm]. Qed.
Lemma derive_exp (f : R -> R) (df t : R) : is_derive f t df -> is_derive (fun u => exp (f u)) t (df * exp (f t)).
Proof. intros F. apply (is_derive_comp exp f); [apply is_derive_exp|easy]. Qed.
Lemma derive_ln (f : R -> R) (df t : R) : 0 < f t -> is_derive f t df -> is_derive (fun u => ln (f u)) t (df * / f t).
Proof. intros P F. apply (is_derive_comp ln f); [now apply is_derive_ln|easy]. Qed.
(* The same derivative written in another form. *)
Lemma derive_eq (f : R -> R) (t a b : R) : is_derive f t a -> a = b -> is_derive f t b.
Proof. now intros D <-. Qed.

Lemma derive_Sum {A : Type} (f : R -> A -> R) (df : A -> R) (l : list A) (t : R) :
  (forall x, In x l -> is_derive (fun u => f u x) t (df x)) -> is_derive (fun u => Sum (f u) l) t (Sum df l).
Proof.
  induction l as [|y r IH]; simpl; intros D; [apply (is_derive_const 0 t)|].
  apply (derive_plus (fun u => f u y) (fun u => Sum (f u) r)); [apply D; now left|apply IH; intros; apply D; now right].
Qed.

(* log x <= x - 1, in the form that makes every term of a divergence at least the change of mass. *)
Lemma exp_of_log_ratio a b : 0 < a -> 0 < b -> exp (ln b - ln a) = b / a.
Proof. intros A B. unfold Rminus. rewrite exp_plus, exp_Ropp, !exp_ln by easy. reflexivity. Qed.
Lemma Gibbs_term a b : 0 < a -> 0 < b -> a - b <= a * (ln a - ln b).
Proof.
  intros A B. assert (X := exp_ineq1_le (ln b - ln a)). rewrite exp_of_log_ratio in X by easy.
  apply (Rmult_le_compat_l a) in X; [|lra]. replace (a * (b / a)) with b in X by (field; lra). nra.
Qed.
Lemma Gibbs_term_strict a b : 0 < a -> 0 < b -> a <> b -> a - b < a * (ln a - ln b).
Proof.
  intros A B D. assert (Z : ln b - ln a <> 0) by (intros Z; apply D; symmetry; apply ln_inv; lra).
  assert (X := exp_ineq1 _ Z). rewrite exp_of_log_ratio in X by easy.
  apply (Rmult_lt_compat_l a) in X; [|lra]. replace (a * (b / a)) with b in X by (field; lra). nra.
Qed.
Lemma ln_same_order a b : 0 < a -> 0 < b -> 0 <= (a - b) * (ln a - ln b).
Proof.
  intros A B. destruct (Rtotal_order a b) as [L|[->|G]]; [|lra|].
  - assert (ln a < ln b) by now apply ln_increasing. nra.
  - assert (ln b < ln a) by now apply ln_increasing. nra.
Qed.
Lemma ln_same_order_zero a b : 0 < a -> 0 < b -> (a - b) * (ln a - ln b) = 0 -> a = b.
Proof.
  intros A B E. apply Rmult_integral in E. destruct E as [E|E]; [lra|]. apply ln_inv; lra.
Qed.
