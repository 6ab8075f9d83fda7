(* Finite sums of reals over a list, Chebyshev's sum inequality, and the covariance as a sum over pairs. *)
From Coq Require Import Reals Lra Psatz List.
Import ListNotations.
Open Scope R_scope.

Fixpoint Sum {A : Type} (f : A -> R) (l : list A) : R :=
  match l with nil => 0 | x :: r => f x + Sum f r end.

Section Linearity.
Context {A : Type}.
Implicit Types (f g : A -> R) (l : list A).

Lemma Sum_ext f g l : (forall x, In x l -> f x = g x) -> Sum f l = Sum g l.
Proof. induction l as [|y l IH]; simpl; intros E; [easy|]. rewrite (E y), IH; auto. Qed.
Lemma Sum_plus f g l : Sum (fun x => f x + g x) l = Sum f l + Sum g l.
Proof. induction l; simpl; lra. Qed.
Lemma Sum_minus f g l : Sum (fun x => f x - g x) l = Sum f l - Sum g l.
Proof. induction l; simpl; lra. Qed.
Lemma Sum_scal c f l : Sum (fun x => c * f x) l = c * Sum f l.
Proof. induction l as [|y l IH]; simpl; [lra|]. rewrite IH; ring. Qed.
Lemma Sum_scal_r c f l : Sum (fun x => f x * c) l = Sum f l * c.
Proof. induction l as [|y l IH]; simpl; [lra|]. rewrite IH; ring. Qed.
Lemma Sum_opp f l : Sum (fun x => - f x) l = - Sum f l.
Proof. induction l; simpl; lra. Qed.
Lemma Sum_zero f l : (forall x, In x l -> f x = 0) -> Sum f l = 0.
Proof. induction l as [|y l IH]; simpl; intros E; [easy|]. rewrite (E y), IH; auto; lra. Qed.
Lemma Sum_map {B : Type} (h : B -> A) f (m : list B) : Sum f (map h m) = Sum (fun y => f (h y)) m.
Proof. induction m; simpl; congruence. Qed.
End Linearity.

Lemma Sum_swap {A B : Type} (f : A -> B -> R) (l : list A) (m : list B) :
  Sum (fun x => Sum (f x) m) l = Sum (fun y => Sum (fun x => f x y) l) m.
Proof.
  induction l as [|x l IH]; simpl; [symmetry; now apply Sum_zero|]. rewrite IH, <- Sum_plus. reflexivity.
Qed.

Section Order.
Context {A : Type}.
Implicit Types (f g : A -> R) (l : list A).

Lemma Sum_nonneg f l : (forall x, In x l -> 0 <= f x) -> 0 <= Sum f l.
Proof.
  induction l as [|y l IH]; simpl; intros E; [lra|].
  assert (0 <= f y) by auto. assert (0 <= Sum f l) by auto. lra.
Qed.
Lemma Sum_pos f l : l <> nil -> (forall x, In x l -> 0 < f x) -> 0 < Sum f l.
Proof.
  destruct l as [|y l]; simpl; intros N E; [easy|].
  assert (0 < f y) by auto. assert (0 <= Sum f l) by (apply Sum_nonneg; intros; left; auto). lra.
Qed.
Lemma Sum_le f g l : (forall x, In x l -> f x <= g x) -> Sum f l <= Sum g l.
Proof.
  induction l as [|y l IH]; simpl; intros E; [lra|].
  assert (f y <= g y) by auto. assert (Sum f l <= Sum g l) by auto. lra.
Qed.
Lemma Sum_lt f g l : l <> nil -> (forall x, In x l -> f x < g x) -> Sum f l < Sum g l.
Proof.
  destruct l as [|y l]; simpl; intros N E; [easy|].
  assert (f y < g y) by auto. assert (Sum f l <= Sum g l) by (apply Sum_le; intros; left; auto). lra.
Qed.
(* A term is at most a sum of nonnegative terms. *)
Lemma Sum_In f l x : (forall y, In y l -> 0 <= f y) -> In x l -> f x <= Sum f l.
Proof.
  induction l as [|y l IH]; simpl; intros E I; [easy|]. destruct I as [->|I].
  - assert (0 <= Sum f l) by (apply Sum_nonneg; auto). lra.
  - assert (f x <= Sum f l) by auto. assert (0 <= f y) by auto. lra.
Qed.
Lemma Sum_nonneg_zero f l x : (forall y, In y l -> 0 <= f y) -> Sum f l = 0 -> In x l -> f x = 0.
Proof. intros E S I. assert (f x <= Sum f l) by now apply Sum_In. assert (0 <= f x) by auto. lra. Qed.
(* Terms with f <= g and equal sums are equal. *)
Lemma Sum_le_eq f g l x : (forall y, In y l -> f y <= g y) -> Sum f l = Sum g l -> In x l -> f x = g x.
Proof.
  intros E S I. enough (g x - f x = 0) by lra. apply (Sum_nonneg_zero (fun y => g y - f y) l); [|rewrite Sum_minus; lra|easy].
  intros y J. assert (f y <= g y) by auto. lra.
Qed.
End Order.

(* Chebyshev's sum inequality. For weights a: the gap Σ a f Σ a g − Σ a Σ a f g is −½ Σ_xy a_x a_y (f_x − f_y)(g_x − g_y). *)
Section Chebyshev.
Context {A : Type}.
Implicit Types (a f g : A -> R) (l : list A).

Lemma covariance_by_pairs a f g l :
  Sum (fun x => Sum (fun y => a x * a y * ((f x - f y) * (g x - g y))) l) l
  = 2 * (Sum a l * Sum (fun x => a x * (f x * g x)) l - Sum (fun x => a x * f x) l * Sum (fun x => a x * g x) l).
Proof.
  rewrite (Sum_ext _ (fun x => (a x * (f x * g x)) * Sum a l + a x * Sum (fun y => a y * (f y * g y)) l
    - ((a x * f x) * Sum (fun y => a y * g y) l + (a x * g x) * Sum (fun y => a y * f y) l))).
  - rewrite Sum_minus, !Sum_plus, !Sum_scal_r. ring.
  - intros x _. rewrite <- !Sum_scal, <- !Sum_plus, <- Sum_minus. apply Sum_ext. intros. ring.
Qed.

(* Oppositely ordered f and g. *)
Lemma Chebyshev_opposite a f g l :
  (forall x, In x l -> 0 <= a x) ->
  (forall x y, In x l -> In y l -> (f x - f y) * (g x - g y) <= 0) ->
  Sum a l * Sum (fun x => a x * (f x * g x)) l <= Sum (fun x => a x * f x) l * Sum (fun x => a x * g x) l.
Proof.
  intros P O. assert (C := covariance_by_pairs a f g l).
  enough (0 <= - Sum (fun x => Sum (fun y => a x * a y * ((f x - f y) * (g x - g y))) l) l) by lra.
  rewrite <- Sum_opp. apply Sum_nonneg. intros x I. rewrite <- Sum_opp. apply Sum_nonneg. intros y J.
  assert (0 <= a x * a y) by (apply Rmult_le_pos; auto). assert (Oxy := O x y I J). nra.
Qed.
(* Equally ordered f and g. *)
Lemma Chebyshev_equal a f g l :
  (forall x, In x l -> 0 <= a x) ->
  (forall x y, In x l -> In y l -> 0 <= (f x - f y) * (g x - g y)) ->
  Sum (fun x => a x * f x) l * Sum (fun x => a x * g x) l <= Sum a l * Sum (fun x => a x * (f x * g x)) l.
Proof.
  intros P O. assert (C := Chebyshev_opposite a f (fun x => - g x) l P).
  rewrite (Sum_ext (fun x => a x * (f x * - g x)) (fun x => - (a x * (f x * g x)))) in C by (intros; ring).
  rewrite (Sum_ext (fun x => a x * - g x) (fun x => - (a x * g x))) in C by (intros; ring).
  rewrite !Sum_opp in C. enough (forall x y, In x l -> In y l -> (f x - f y) * (- g x - - g y) <= 0) as M by (specialize (C M); lra).
  intros x y I J. assert (Oxy := O x y I J). lra.
Qed.
(* With positive weights, equality leaves no pair that f and g both separate. *)
Lemma Chebyshev_equality a f g l :
  (forall x, In x l -> 0 < a x) ->
  (forall x y, In x l -> In y l -> 0 <= (f x - f y) * (g x - g y)) ->
  Sum (fun x => a x * f x) l * Sum (fun x => a x * g x) l = Sum a l * Sum (fun x => a x * (f x * g x)) l ->
  forall x y, In x l -> In y l -> (f x - f y) * (g x - g y) = 0.
Proof.
  intros P O E x y I J. assert (C := covariance_by_pairs a f g l).
  assert (N : forall u v, In u l -> In v l -> 0 <= a u * a v * ((f u - f v) * (g u - g v))).
  { intros u v U V. apply Rmult_le_pos; [|auto]. apply Rmult_le_pos; left; auto. }
  assert (R : Sum (fun v => a x * a v * ((f x - f v) * (g x - g v))) l = 0).
  { apply (Sum_nonneg_zero (fun u => Sum (fun v => a u * a v * ((f u - f v) * (g u - g v))) l) l); [|lra|easy].
    intros u U. apply Sum_nonneg. auto. }
  assert (Z : a x * a y * ((f x - f y) * (g x - g y)) = 0).
  { apply (Sum_nonneg_zero (fun v => a x * a v * ((f x - f v) * (g x - g v))) l); auto. }
  assert (0 < a x * a y) by (apply Rmult_lt_0_compat; auto).
  apply Rmult_integral in Z. destruct Z; [lra|easy].
Qed.
End Chebyshev.
