(* The ray of one sampled token: q_t ∝ p exp(t d) with d = e_k − λ p and 0 <= λ <= 1.

   λ = 1 is a GRPO step, λ = 0 moves one logit. This file holds what the step bound (T1), the one-sided sign theorem
   (B.8), the concavity (T2) and many small steps (T3) share. Sums over the tokens other than k:

     e_i  = p_i exp(−t λ p_i)            e_k = p_k exp(t d_k),  d_k = 1 − λ p_k
     B f  = Σ_{i≠k} e_i f_i              T   = e_k + B 1        (the normaliser: q_i = e_i / T)
     T1, T2 = T', T''                    w_i = log(p_k / p_i)   (so log p_i = log p_k − w_i, w_k = 0)
     Ψ_f  = λ T B[p f] + T' B[f]         Cov_{q_t}(d, −f) = Ψ_f / T²  for f_k = 0
     Ψ_f' = T'' B[f] − λ² T B[p² f]
     c1 = λ B[p] + d_k B[1] > 0          q_k' = e_k c1 / T²
     c2 = d_k² B[1] − λ² B[p²] >= 0      (e_k c1)' = e_k c2

   If f falls where p rises, Chebyshev's inequality, used twice, gives B[1] Ψ_f <= e_k c1 B[f] and
   B[1] Ψ_f' >= e_k c2 B[f], hence Ψ_f c2 <= Ψ_f' c1 (`Psi_inequality`): the slope Ψ_w / (e_k c1) of −E_q[log p]
   in q_k, up to sign, grows along the ray. *)
From Coq Require Import Reals Lra Psatz List.
From Coquelicot Require Import Coquelicot.
From EntropyTheory Require Import Sums Calculus Policy Discriminant.
Open Scope R_scope.

Class sampled_token {V : vocabulary} (p : V -> R) (k : V) (lam : R) : Prop := {
  lam_nonneg : 0 <= lam;
  lam_le_1 : lam <= 1;
  p_policy : policy p;
  some_other : others k <> nil
}.

Section Ray.
Context {V : vocabulary} (p : V -> R) (k : V) (lam : R).
Notation rest := (others k).

Definition d_k : R := 1 - lam * p k.
Definition e (t : R) (i : V) : R := p i * exp (- (t * (lam * p i))).
Definition e_k (t : R) : R := p k * exp (t * d_k).
Definition B (f : V -> R) (t : R) : R := Sum (fun i => e t i * f i) rest.
Definition B0 (t : R) : R := Sum (e t) rest.
Definition T (t : R) : R := e_k t + B0 t.
Definition T1 (t : R) : R := e_k t * d_k - lam * B p t.
Definition T2 (t : R) : R := e_k t * d_k ^ 2 + lam ^ 2 * B (fun i => p i * p i) t.
Definition q (t : R) (i : V) : R := (if same_token i k then e_k t else e t i) / T t.
Definition q_k (t : R) : R := e_k t / T t.

Definition w (i : V) : R := ln (p k) - ln (p i).
Definition Psi_ (f : V -> R) (t : R) : R := lam * (T t * B (fun i => p i * f i) t) + T1 t * B f t.
Definition dPsi_ (f : V -> R) (t : R) : R := T2 t * B f t - lam ^ 2 * (T t * B (fun i => p i * (p i * f i)) t).
Definition Psi : R -> R := Psi_ w.
Definition c1 (t : R) : R := lam * B p t + d_k * B0 t.
Definition c2 (t : R) : R := d_k ^ 2 * B0 t - lam ^ 2 * B (fun i => p i * p i) t.
Definition g (t : R) : R := exp (t * d_k) * c1 t. (* q_k' = p_k g / T² *)
Definition antitone (f : V -> R) : Prop := forall i j, In i rest -> In j rest -> (p i - p j) * (f i - f j) <= 0.

Definition S_d : R := discriminant p k - lam * baseline p. (* Cov_p(d, log p) *)
Definition D_0 : R := p k * g 0. (* Cov_p(d, 1_k), see D_0_is *)
Definition phi (t : R) : R := ln (p k) - B w t / T t. (* E_{q_t}[log p] *)

(* Derivatives; these need no hypothesis. *)
Lemma B_derive f t : is_derive (B f) t (- (lam * B (fun i => p i * f i) t)).
Proof.
  unfold B. eapply derive_eq; [apply (derive_Sum (fun u i => e u i * f i) (fun i => - (lam * (e t i * (p i * f i)))))|].
  - intros i _. unfold e. auto_derive; [easy|ring].
  - rewrite Sum_opp, Sum_scal. reflexivity.
Qed.
Lemma B0_is t : B0 t = B (fun _ => 1) t.
Proof. apply Sum_ext. intros. ring. Qed.
Lemma B0_derive t : is_derive B0 t (- (lam * B p t)).
Proof.
  apply (is_derive_ext (B (fun _ => 1))); [intros; symmetry; apply B0_is|].
  eapply derive_eq; [apply B_derive|]. do 2 f_equal. apply Sum_ext. intros. ring.
Qed.
Lemma e_k_derive t : is_derive e_k t (e_k t * d_k).
Proof. unfold e_k. auto_derive; [easy|ring]. Qed.
Lemma T_derive t : is_derive T t (T1 t).
Proof.
  unfold T, T1. eapply derive_eq; [apply derive_plus; [apply e_k_derive|apply B0_derive]|]. ring.
Qed.
Lemma T1_derive t : is_derive T1 t (T2 t).
Proof.
  unfold T1, T2.
  apply (is_derive_ext (fun u => d_k * e_k u - lam * B p u)); [intros; simpl; ring|].
  eapply derive_eq; [apply derive_minus; apply derive_scal; [apply e_k_derive|apply B_derive]|]. ring.
Qed.
Lemma Psi__derive f t : is_derive (Psi_ f) t (dPsi_ f t).
Proof.
  unfold Psi_, dPsi_. eapply derive_eq.
  - apply (derive_plus (fun u => lam * (T u * B (fun i => p i * f i) u)) (fun u => T1 u * B f u)).
    + apply derive_scal. apply derive_mult; [apply T_derive|apply B_derive].
    + apply derive_mult; [apply T1_derive|apply B_derive].
  - cbv beta. ring.
Qed.
Lemma g_derive t : is_derive g t (exp (t * d_k) * c2 t).
Proof.
  unfold g, c1, c2. eapply derive_eq.
  - apply (derive_mult (fun u => exp (u * d_k)) (fun u => lam * B p u + d_k * B0 u)).
    + apply (derive_exp (fun u => u * d_k) d_k). auto_derive; [easy|ring].
    + apply derive_plus; apply derive_scal; [apply B_derive|apply B0_derive].
  - cbv beta. ring.
Qed.

Lemma e_k_0 : e_k 0 = p k.
Proof. unfold e_k. rewrite Rmult_0_l, exp_0. ring. Qed.
Lemma e_0 i : e 0 i = p i.
Proof. unfold e. rewrite Rmult_0_l, Ropp_0, exp_0. ring. Qed.
Lemma B_0 f : B f 0 = Sum (fun i => p i * f i) rest.
Proof. apply Sum_ext. intros. now rewrite e_0. Qed.
Lemma B0_0 : B0 0 = Sum p rest.
Proof. apply Sum_ext. intros. apply e_0. Qed.
Lemma B_constant c t : B (fun _ => c) t = B0 t * c.
Proof. unfold B, B0. apply Sum_scal_r. Qed.

(* The rest assumes that p is a policy, 0 <= λ <= 1, and a second token. *)
Context {ray : sampled_token p k lam}.

Lemma p_pos i : 0 < p i.
Proof. apply p_policy. Qed.
Lemma p_rest : Sum p rest = 1 - p k.
Proof. assert (S := proj2 p_policy). rewrite (sum_split p k) in S. lra. Qed.
Lemma e_pos t i : 0 < e t i.
Proof. apply Rmult_lt_0_compat; [apply p_pos|apply exp_pos]. Qed.
Lemma e_k_pos t : 0 < e_k t.
Proof. apply Rmult_lt_0_compat; [apply p_pos|apply exp_pos]. Qed.
Lemma B0_pos t : 0 < B0 t.
Proof. apply Sum_pos; [apply some_other|]. intros. apply e_pos. Qed.
Lemma B_nonneg f t : (forall i, 0 <= f i) -> 0 <= B f t.
Proof. intros F. apply Sum_nonneg. intros i _. apply Rmult_le_pos; [left; apply e_pos|apply F]. Qed.
Lemma B_p_nonneg t : 0 <= B p t.
Proof. apply B_nonneg. intros; left; apply p_pos. Qed.
Lemma T_pos t : 0 < T t.
Proof. unfold T. assert (P := e_k_pos t). assert (Q := B0_pos t). lra. Qed.
Lemma T_square_pos t : 0 < T t ^ 2.
Proof. assert (P := T_pos t). nra. Qed.
Lemma p_k_lt_1 : p k < 1.
Proof.
  assert (0 < Sum p rest) by (apply Sum_pos; [apply some_other|intros; apply p_pos]). assert (R := p_rest). lra.
Qed.
Lemma d_k_pos : 0 < d_k.
Proof. assert (P := p_k_lt_1). assert (K := p_pos k). assert (L := lam_nonneg). assert (L1 := lam_le_1). unfold d_k. nra. Qed.
Lemma p_other_le i : In i rest -> p i <= 1 - p k.
Proof. intros I. rewrite <- p_rest. apply Sum_In; [intros; left; apply p_pos|easy]. Qed.
(* λ p_i <= λ (1 − p_k) <= 1 − λ p_k = d_k: the only use of λ <= 1 beyond d_k > 0. *)
Lemma lam_p_le_d_k i : In i rest -> lam * p i <= d_k.
Proof.
  intros I. assert (P := p_other_le i I). assert (L := lam_nonneg). assert (L1 := lam_le_1). unfold d_k. nra.
Qed.

Lemma c1_pos t : 0 < c1 t.
Proof.
  assert (0 < d_k * B0 t) by (apply Rmult_lt_0_compat; [apply d_k_pos|apply B0_pos]).
  assert (0 <= lam * B p t) by (apply Rmult_le_pos; [apply lam_nonneg|apply B_p_nonneg]). unfold c1. lra.
Qed.
Lemma g_pos t : 0 < g t.
Proof. apply Rmult_lt_0_compat; [apply exp_pos|apply c1_pos]. Qed.
Lemma c2_nonneg t : 0 <= c2 t.
Proof.
  unfold c2. enough (lam ^ 2 * B (fun i => p i * p i) t <= d_k ^ 2 * B0 t) by lra.
  unfold B, B0. rewrite <- !Sum_scal. apply Sum_le. intros i I.
  assert (P := e_pos t i). assert (D := d_k_pos). assert (L := lam_p_le_d_k i I). assert (Pi := p_pos i).
  assert (0 <= lam * p i) by (apply Rmult_le_pos; [apply lam_nonneg|lra]).
  assert ((lam * p i) * (lam * p i) <= d_k * d_k) by (apply Rmult_le_compat; lra).
  replace (lam ^ 2 * (e t i * (p i * p i))) with (e t i * ((lam * p i) * (lam * p i))) by ring.
  replace (d_k ^ 2 * e t i) with (e t i * (d_k * d_k)) by ring. apply Rmult_le_compat_l; lra.
Qed.

(* The two uses of Chebyshev's inequality. *)
Lemma Chebyshev_p f t : antitone f -> B0 t * B (fun i => p i * f i) t <= B p t * B f t.
Proof. intros A. apply (Chebyshev_opposite (e t) p f rest); [intros; left; apply e_pos|exact A]. Qed.
Lemma squares_ordered i j : p i * p i - p j * p j = (p i + p j) * (p i - p j).
Proof. ring. Qed.
Lemma Chebyshev_p_squared f t : antitone f ->
  B0 t * B (fun i => p i * (p i * f i)) t <= B (fun i => p i * p i) t * B f t.
Proof.
  intros A. unfold B. rewrite (Sum_ext (fun i => e t i * (p i * (p i * f i))) (fun i => e t i * ((p i * p i) * f i))) by (intros; ring).
  apply (Chebyshev_opposite (e t) (fun i => p i * p i) f rest); [intros; left; apply e_pos|].
  intros i j I J. assert (M := A i j I J). assert (Pi := p_pos i). assert (Pj := p_pos j).
  rewrite squares_ordered, Rmult_assoc. nra.
Qed.
(* Without equality of all p_i off k the second use is strict, unless f is constant there. *)
Lemma Chebyshev_p_squared_equality f t : antitone f ->
  B0 t * B (fun i => p i * (p i * f i)) t = B (fun i => p i * p i) t * B f t ->
  forall i j, In i rest -> In j rest -> (p i - p j) * (f i - f j) = 0.
Proof.
  intros A E i j I J. assert (Pi := p_pos i). assert (Pj := p_pos j).
  assert (H : (p i * p i - p j * p j) * (- f i - - f j) = 0).
  { apply (Chebyshev_equality (e t) (fun i => p i * p i) (fun i => - f i) rest); auto.
    - intros; apply e_pos.
    - intros a b Ia Jb. assert (M := A a b Ia Jb). assert (Pa := p_pos a). assert (Pb := p_pos b).
      rewrite squares_ordered, Rmult_assoc. apply Rmult_le_pos; lra.
    - unfold B, B0 in E.
      rewrite (Sum_ext (fun x => e t x * - f x) (fun x => - (e t x * f x))) by (intros; ring).
      rewrite (Sum_ext (fun x => e t x * (p x * p x * - f x)) (fun x => - (e t x * (p x * (p x * f x))))) by (intros; ring).
      rewrite !Sum_opp. lra. }
  rewrite squares_ordered, Rmult_assoc in H. apply Rmult_integral in H. destruct H as [H|H]; [lra|]. lra.
Qed.

Lemma Psi_upper f t : antitone f -> B0 t * Psi_ f t <= B f t * (e_k t * c1 t).
Proof.
  intros A. assert (C := Chebyshev_p f t A).
  assert (M : 0 <= lam * T t) by (apply Rmult_le_pos; [apply lam_nonneg|left; apply T_pos]).
  apply (Rmult_le_compat_l _ _ _ M) in C. unfold Psi_.
  replace (e_k t * c1 t) with (lam * T t * B p t + B0 t * T1 t) by (unfold c1, T, T1; ring).
  replace (B0 t * (lam * (T t * B (fun i => p i * f i) t) + T1 t * B f t))
    with (lam * T t * (B0 t * B (fun i => p i * f i) t) + B f t * (B0 t * T1 t)) by ring.
  replace (B f t * (lam * T t * B p t + B0 t * T1 t)) with (lam * T t * (B p t * B f t) + B f t * (B0 t * T1 t)) by ring. lra.
Qed.
(* The slack of the lower bound is λ² T times the slack of Chebyshev_p_squared. *)
Lemma dPsi_slack f t : B0 t * dPsi_ f t - B f t * (e_k t * c2 t)
  = lam ^ 2 * T t * (B (fun i => p i * p i) t * B f t - B0 t * B (fun i => p i * (p i * f i)) t).
Proof. unfold dPsi_, c2, T2, T. ring. Qed.
Lemma dPsi_lower f t : antitone f -> B f t * (e_k t * c2 t) <= B0 t * dPsi_ f t.
Proof.
  intros A. assert (C := Chebyshev_p_squared f t A). assert (S := dPsi_slack f t).
  enough (0 <= lam ^ 2 * T t * (B (fun i => p i * p i) t * B f t - B0 t * B (fun i => p i * (p i * f i)) t)) by lra.
  apply Rmult_le_pos; [|lra]. apply Rmult_le_pos; [apply pow2_ge_0|left; apply T_pos].
Qed.
Lemma Psi_inequality f t : antitone f -> Psi_ f t * c2 t <= dPsi_ f t * c1 t.
Proof.
  intros A. assert (U := Psi_upper f t A). assert (L := dPsi_lower f t A).
  apply (Rmult_le_compat_r _ _ _ (c2_nonneg t)) in U. apply (Rmult_le_compat_r (c1 t)) in L; [|left; apply c1_pos].
  apply Rmult_le_reg_l with (B0 t); [apply B0_pos|].
  replace (B0 t * (Psi_ f t * c2 t)) with (B0 t * Psi_ f t * c2 t) by ring.
  replace (B0 t * (dPsi_ f t * c1 t)) with (B0 t * dPsi_ f t * c1 t) by ring.
  replace (B f t * (e_k t * c1 t) * c2 t) with (B f t * (e_k t * c2 t) * c1 t) in U by ring. lra.
Qed.
(* Equality needs λ = 0, or f constant where p differs. *)
Lemma Psi_inequality_strict f t i j : antitone f -> 0 < lam -> In i rest -> In j rest -> (p i - p j) * (f i - f j) <> 0 ->
  Psi_ f t * c2 t < dPsi_ f t * c1 t.
Proof.
  intros A Lp I J N. assert (U := Psi_upper f t A). assert (C := Chebyshev_p_squared f t A). assert (S := dPsi_slack f t).
  assert (L : B f t * (e_k t * c2 t) < B0 t * dPsi_ f t).
  { destruct C as [C|E]; [|exfalso; apply N; now apply (Chebyshev_p_squared_equality f t A E)].
    assert (0 < lam ^ 2 * T t * (B (fun i => p i * p i) t * B f t - B0 t * B (fun i => p i * (p i * f i)) t)); [|lra].
    apply Rmult_lt_0_compat; [|lra]. apply Rmult_lt_0_compat; [nra|apply T_pos]. }
  apply (Rmult_le_compat_r _ _ _ (c2_nonneg t)) in U. apply (Rmult_lt_compat_r (c1 t)) in L; [|apply c1_pos].
  apply Rmult_lt_reg_l with (B0 t); [apply B0_pos|].
  replace (B0 t * (Psi_ f t * c2 t)) with (B0 t * Psi_ f t * c2 t) by ring.
  replace (B0 t * (dPsi_ f t * c1 t)) with (B0 t * dPsi_ f t * c1 t) by ring.
  replace (B f t * (e_k t * c1 t) * c2 t) with (B f t * (e_k t * c2 t) * c1 t) in U by ring. lra.
Qed.
Lemma w_antitone : antitone w.
Proof. intros i j _ _. assert (O := ln_same_order (p i) (p j) (p_pos i) (p_pos j)). unfold w. lra. Qed.

(* The slope Ψ / g of −E_q[log p] does not fall along the ray. *)
Lemma slope_derive t : is_derive (fun u => Psi u / g u) t ((dPsi_ w t * g t - Psi t * (exp (t * d_k) * c2 t)) / g t ^ 2).
Proof. apply (is_derive_div Psi g); [apply Psi__derive|apply g_derive|]. assert (G := g_pos t). lra. Qed.
Lemma slope_grows s t : s <= t -> Psi s / g s <= Psi t / g t.
Proof.
  intros L. apply (nondecreasing_from_derivative (fun u => Psi u / g u) _ s t L (fun u _ => slope_derive u)).
  intros u _. assert (G := g_pos u). assert (K := Psi_inequality w u w_antitone). assert (E := exp_pos (u * d_k)).
  apply Rmult_le_pos; [|left; apply Rinv_0_lt_compat; nra].
  unfold Psi, g in *. apply (Rmult_le_compat_l (exp (u * d_k))) in K; lra.
Qed.
Lemma slope_grows_strictly s t i j : 0 < lam -> In i rest -> In j rest -> p i <> p j -> s < t -> Psi s / g s < Psi t / g t.
Proof.
  intros Lp I J N L. apply (increasing_from_derivative (fun u => Psi u / g u) _ s t L (fun u _ => slope_derive u)).
  intros u _. assert (G := g_pos u). assert (E := exp_pos (u * d_k)).
  assert (D : (p i - p j) * (w i - w j) <> 0).
  { intros Z. apply N. apply ln_same_order_zero; try apply p_pos. unfold w in Z. lra. }
  assert (K := Psi_inequality_strict w u i j w_antitone Lp I J D).
  apply Rdiv_lt_0_compat; [|nra]. unfold Psi, g in *. apply (Rmult_lt_compat_l (exp (u * d_k))) in K; lra.
Qed.
(* Where p is constant off k, or λ = 0, the slope is constant. *)
Lemma slope_constant c t : (forall i, In i rest -> w i = c) -> Psi t / g t = p k * c.
Proof.
  intros W. assert (G := g_pos t).
  assert (B1 : B w t = B0 t * c) by (rewrite <- B_constant; apply Sum_ext; intros; now rewrite W).
  assert (B2 : B (fun i => p i * w i) t = B p t * c).
  { unfold B. rewrite <- Sum_scal_r. apply Sum_ext. intros i I. rewrite (W i I). ring. }
  unfold Psi, Psi_. rewrite B1, B2.
  replace (lam * (T t * (B p t * c)) + T1 t * (B0 t * c)) with (p k * c * g t) by (unfold g, c1, T1, T, e_k; ring). field. lra.
Qed.
Lemma slope_constant_lam_0 s t : lam = 0 -> Psi s / g s = Psi t / g t.
Proof.
  intros L. assert (C : forall u, Psi u / g u = p k * (Sum (fun i => p i * w i) rest / Sum p rest)).
  { intros u. assert (G := g_pos u). assert (R0 := B0_pos u).
    assert (E : forall f, B f u = Sum (fun i => p i * f i) rest).
    { intros f. apply Sum_ext. intros. unfold e. rewrite L. rewrite Rmult_0_l, Rmult_0_r, Ropp_0, exp_0. ring. }
    assert (E0 : B0 u = Sum p rest) by (rewrite B0_is, E; apply Sum_ext; intros; ring).
    rewrite <- E0, <- E. unfold Psi, Psi_, g, c1, T1, e_k in *. rewrite L in *. field. split; [lra|].
    unfold d_k in *. rewrite L in *. assert (X := exp_pos (u * (1 - 0 * p k))). split; lra. }
  now rewrite !C.
Qed.

(* E_{q_t}[log p] and q_k along the ray. *)
Lemma phi_derive t : is_derive phi t (Psi t / T t ^ 2).
Proof.
  assert (P := T_pos t). unfold phi. eapply derive_eq.
  - apply (derive_minus (fun _ => ln (p k)) (fun u => B w u / T u)); [apply (is_derive_const (ln (p k)) t)|].
    apply (is_derive_div (B w) T); [apply B_derive|apply T_derive|lra].
  - unfold zero; simpl. unfold Psi, Psi_. field. lra.
Qed.
Lemma q_k_derive t : is_derive q_k t (p k * g t / T t ^ 2).
Proof.
  assert (P := T_pos t). unfold q_k. eapply derive_eq; [apply (is_derive_div e_k T); [apply e_k_derive|apply T_derive|lra]|].
  unfold g, c1, T1, T, e_k. field. unfold T, e_k in P. lra.
Qed.
Lemma q_k_slope_pos t : 0 < p k * g t / T t ^ 2.
Proof. apply Rdiv_lt_0_compat; [apply Rmult_lt_0_compat; [apply p_pos|apply g_pos]|apply T_square_pos]. Qed.
Lemma q_k_increases s t : s < t -> q_k s < q_k t.
Proof.
  intros L. apply (increasing_from_derivative q_k _ s t L (fun u _ => q_k_derive u)). intros. apply q_k_slope_pos.
Qed.
Lemma T_0 : T 0 = 1.
Proof. unfold T. rewrite e_k_0, B0_0, p_rest. ring. Qed.
Lemma q_k_0 : q_k 0 = p k.
Proof. unfold q_k. rewrite T_0, e_k_0. field. Qed.
Lemma D_0_pos : 0 < D_0.
Proof. apply Rmult_lt_0_compat; [apply p_pos|apply g_pos]. Qed.
Lemma D_0_is : D_0 = p k * (lam * Sum (fun i => p i * p i) rest + (1 - lam * p k) * (1 - p k)).
Proof. unfold D_0, g, c1. rewrite B_0, B0_0, p_rest, Rmult_0_l, exp_0. unfold d_k. ring. Qed.

Lemma B_w_0 : B w 0 = ln (p k) + entropy p.
Proof.
  rewrite B_0. unfold w, entropy. rewrite (sum_split (fun i => p i * ln (p i)) k).
  rewrite (Sum_ext _ (fun i => p i * ln (p k) - p i * ln (p i))) by (intros; ring).
  rewrite Sum_minus, Sum_scal_r, p_rest. ring.
Qed.
Lemma Psi_0 : Psi 0 = S_d.
Proof.
  unfold Psi, Psi_. rewrite T_0, B_w_0. unfold T1. rewrite !B_0, e_k_0. unfold d_k, S_d, baseline, mean.
  rewrite (sum_split (fun i => p i * discriminant p i) k). unfold discriminant, w.
  rewrite (Sum_ext (fun i => p i * (p i * (ln (p k) - ln (p i)))) (fun i => (p i * p i) * ln (p k) - p i * p i * ln (p i))) by (intros; ring).
  rewrite (Sum_ext (fun i => p i * (p i * (entropy p + ln (p i)))) (fun i => (p i * p i) * entropy p + p i * p i * ln (p i))) by (intros; ring).
  rewrite Sum_minus, Sum_plus, !Sum_scal_r. ring.
Qed.

(* q_t is a policy, and the softmax of the moved logits. *)
Lemma q_at_k t : q t k = q_k t.
Proof. unfold q. now destruct (same_token k k). Qed.
Lemma q_other t i : In i rest -> q t i = e t i / T t.
Proof. intros I. apply others_spec in I. unfold q. now destruct (same_token i k). Qed.
Lemma q_rest_sum f t : Sum (fun i => q t i * f i) rest = B f t / T t.
Proof.
  unfold Rdiv, B. rewrite <- Sum_scal_r. apply Sum_ext. intros i I. rewrite q_other by easy. unfold Rdiv. ring.
Qed.
Lemma q_pos t i : 0 < q t i.
Proof. apply Rdiv_lt_0_compat; [destruct (same_token i k); [apply e_k_pos|apply e_pos]|apply T_pos]. Qed.
Lemma q_policy t : policy (q t).
Proof.
  split; [apply q_pos|]. rewrite (sum_split (q t) k), q_at_k.
  rewrite (Sum_ext _ (fun i => q t i * 1)) by (intros; ring). rewrite q_rest_sum, <- B0_is.
  assert (P := T_pos t). unfold q_k, T in *. field. lra.
Qed.
Lemma phi_is t : phi t = mean (q t) (fun i => ln (p i)).
Proof.
  assert (P := T_pos t). unfold mean. rewrite (sum_split (fun i => q t i * ln (p i)) k), q_at_k, q_rest_sum. unfold phi, q_k.
  replace (B w t) with (B0 t * ln (p k) - B (fun i => ln (p i)) t).
  - unfold T in *. field. lra.
  - unfold B, B0, w. rewrite <- Sum_scal_r, <- Sum_minus. apply Sum_ext. intros. ring.
Qed.
End Ray.

Lemma softmax_ray {V : vocabulary} (z : V -> R) (k : V) lam t i : others k <> nil ->
  softmax (step z t (towards k lam (softmax z))) i = q (softmax z) k lam t i.
Proof.
  intros O. rewrite softmax_step. set (p := softmax z).
  assert (E : forall j, p j * exp (t * towards k lam p j) = if same_token j k then e_k p k lam t else e p lam t j).
  { intros j. unfold towards, unit_vector. destruct (same_token j k) as [->|D]; unfold e_k, e, d_k; [easy|].
    do 2 f_equal. ring. }
  unfold q. rewrite E. f_equal. rewrite (sum_split _ k), E. unfold T. destruct (same_token k k); [|easy]. f_equal.
  apply Sum_ext. intros j J. rewrite E. apply others_spec in J. now destruct (same_token j k).
Qed.
