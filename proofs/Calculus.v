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
