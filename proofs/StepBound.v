(* T1. For every step size α of either sign, with d = e_k − λ p, 0 <= λ <= 1, S_d = S_k − λ N = Cov_p(d, log p)
   and D_0 = Cov_p(d, 1_k):

       H(q_α) − H(p) <= − S_d (q_α(k) − p_k) / D_0 − KL(q_α ‖ p),

   with equality iff α = 0, λ = 0, or all tokens but k have one probability. *)
From Coq Require Import Reals Lra Psatz List.
From Coquelicot Require Import Coquelicot.
From EntropyTheory Require Import Sums Calculus Policy Discriminant ExactIdentity Ray.
Open Scope R_scope.

Section Core.
Context {V : vocabulary} (p : V -> R) (k : V) (lam : R) {ray : sampled_token p k lam}.
Notation rest := (others k).
Local Notation q := (q p k lam).
Local Notation q_k := (q_k p k lam).
Local Notation phi := (phi p k lam).
Local Notation Psi := (Psi p k lam).
Local Notation g := (g p k lam).
Local Notation T := (T p k lam).
Local Notation D_0 := (D_0 p k lam).
Local Notation S_d := (S_d p k lam).

Lemma change_along_ray t : entropy (q t) - entropy p = - (phi t - phi 0) - KL (q t) p.
Proof.
  rewrite exact_identity. f_equal. f_equal. rewrite !phi_is by exact ray. unfold mean. rewrite <- Sum_minus. apply Sum_ext.
  intros i _. replace (q 0 i) with (p i); [ring|]. unfold Ray.q. rewrite T_0 by exact ray.
  destruct (same_token i k) as [->|]; [rewrite e_k_0|rewrite e_0]; field.
Qed.

(* m(t) = φ(t) − (S_d / D_0) q_k(t) is least at t = 0, since its slope is (Ψ/g − Ψ(0)/g(0)) g / T². *)
Definition m (t : R) : R := phi t - S_d / D_0 * q_k t.
Lemma m_derive t : is_derive m t (g t / T t ^ 2 * (Psi t / g t - Psi 0 / g 0)).
Proof.
  assert (G := g_pos p k lam t). assert (G0 := g_pos p k lam 0). assert (P := T_pos p k lam t). assert (K := p_pos p k lam k).
  unfold m. eapply derive_eq; [apply derive_minus; [apply (phi_derive p k lam)|apply derive_scal, (q_k_derive p k lam)]|].
  rewrite (Psi_0 p k lam). unfold Ray.D_0. field. repeat split; lra.
Qed.
Lemma m_weight_pos t : 0 < g t / T t ^ 2.
Proof. apply Rdiv_lt_0_compat; [apply g_pos; exact ray|apply T_square_pos; exact ray]. Qed.
Lemma m_least t : m 0 <= m t.
Proof.
  destruct (Rle_lt_dec 0 t) as [L|L].
  - apply (nondecreasing_from_derivative m _ 0 t L (fun u _ => m_derive u)). intros u U. apply Rmult_le_pos;
    [left; apply m_weight_pos|]. assert (M := slope_grows p k lam 0 u). lra.
  - enough (- m t <= - m 0) by lra.
    apply (nondecreasing_from_derivative (fun u => - m u) _ t 0 (Rlt_le _ _ L) (fun u _ => derive_opp _ _ _ (m_derive u))).
    intros u U. assert (W := m_weight_pos u). assert (M := slope_grows p k lam u 0). nra.
Qed.
Lemma m_least_strictly t i j : 0 < lam -> In i rest -> In j rest -> p i <> p j -> t <> 0 -> m 0 < m t.
Proof.
  intros Lp I J N Z. destruct (Rtotal_order 0 t) as [L|[E|L]]; [|now symmetry in E|].
  - apply (increasing_from_derivative m _ 0 t L (fun u _ => m_derive u)). intros u U. apply Rmult_lt_0_compat;
    [apply m_weight_pos|]. assert (M := slope_grows_strictly p k lam 0 u i j Lp I J N). lra.
  - apply (decreasing_from_derivative m _ t 0 L (fun u _ => m_derive u)).
    intros u U. assert (W := m_weight_pos u). assert (M := slope_grows_strictly p k lam u 0 i j Lp I J N). nra.
Qed.
Lemma m_constant t : (forall u, Psi u / g u = Psi 0 / g 0) -> m t = m 0.
Proof.
  intros C. assert (D : forall u, is_derive m u 0).
  { intros u. eapply derive_eq; [apply m_derive|]. rewrite C. ring. }
  apply Rle_antisym; [|apply m_least]. destruct (Rle_lt_dec 0 t) as [L|L].
  - enough (- m 0 <= - m t) by lra.
    apply (nondecreasing_from_derivative (fun u => - m u) _ 0 t L (fun u _ => derive_opp _ _ _ (D u))). intros; lra.
  - apply (nondecreasing_from_derivative m _ t 0 (Rlt_le _ _ L) (fun u _ => D u)). intros; lra.
Qed.

Definition upper_bound (t : R) : R := - S_d * (q_k t - p k) / D_0 - KL (q t) p.
Lemma gap_is t : upper_bound t - (entropy (q t) - entropy p) = m t - m 0.
Proof.
  assert (D := D_0_pos p k lam). rewrite change_along_ray. unfold upper_bound, m. rewrite q_k_0 by exact ray. field. lra.
Qed.
Theorem bound_along_ray t : entropy (q t) - entropy p <= upper_bound t.
Proof. assert (G := gap_is t). assert (M := m_least t). lra. Qed.
Theorem bound_equality_along_ray t :
  entropy (q t) - entropy p = upper_bound t <-> t = 0 \/ lam = 0 \/ (forall i j, i <> k -> j <> k -> p i = p j).
Proof.
  assert (G := gap_is t). split.
  - intros E. destruct (Req_dec t 0) as [|Z]; [now left|right].
    destruct (Req_dec lam 0) as [|L]; [now left|right]. intros i j I J.
    destruct (Req_dec (p i) (p j)) as [|N]; [easy|].
    assert (Lp : 0 < lam) by (assert (X := lam_nonneg (sampled_token := ray)); lra).
    assert (M := m_least_strictly t i j Lp (proj2 (others_spec k i) I) (proj2 (others_spec k j) J) N Z). lra.
  - intros C. enough (m t = m 0) by lra. destruct C as [->|C]; [easy|]. apply m_constant. intros u. destruct C as [L|C].
    + now apply slope_constant_lam_0.
    + destruct rest as [|j l] eqn:O; [now destruct (some_other (sampled_token := ray))|].
      assert (J : In j rest) by (rewrite O; now left).
      assert (W : forall i, In i rest -> w p k i = w p k j).
      { intros i I. unfold w. do 2 f_equal. apply C; now apply others_spec. }
      now rewrite !(slope_constant p k lam _ _ W).
Qed.
End Core.

Section Statement.
Context {V : vocabulary}.
Variables (z : V -> R) (k : V) (lam alpha : R).
Hypothesis lam_range : 0 <= lam <= 1.
Hypothesis another_token : exists j, j <> k.

Let p := softmax z.
Let d := towards k lam p. (* e_k − λ p *)
Let q := softmax (step z alpha d).
Let S_d := discriminant p k - lam * baseline p.
Let D_0 := covariance p d (unit_vector k).

Lemma sampled : sampled_token p k lam.
Proof.
  destruct another_token as [j J]. constructor; [easy|easy|apply softmax_policy|].
  intros E. apply others_spec in J. rewrite E in J. easy.
Qed.
Lemma q_is i : q i = Ray.q p k lam alpha i.
Proof. apply softmax_ray, sampled. Qed.
Lemma D_0_covariance : D_0 = Ray.D_0 p k lam.
Proof.
  rewrite D_0_is by apply sampled. unfold D_0, covariance, d, towards. rewrite mean_unit_vector. unfold mean.
  rewrite (Sum_ext _ (fun i => unit_vector k i * (p i * (1 - lam * p i)))).
  - rewrite sum_unit_vector. rewrite (Sum_ext (fun i => p i * (unit_vector k i - lam * p i))
      (fun i => unit_vector k i * p i - lam * (p i * p i))) by (intros; ring).
    rewrite Sum_minus, Sum_scal, sum_unit_vector, (sum_split (fun i => p i * p i) k). ring.
  - intros i _. unfold unit_vector. destruct (same_token i k); ring.
Qed.

Theorem step_bound : entropy q - entropy p <= - S_d * (q k - p k) / D_0 - KL q p.
Proof.
  assert (B := @bound_along_ray V p k lam sampled alpha). unfold upper_bound in B.
  rewrite D_0_covariance, (entropy_ext q _ q_is), (KL_ext q _ p p q_is), q_is, q_at_k by easy. exact B.
Qed.
Theorem step_bound_equality :
  entropy q - entropy p = - S_d * (q k - p k) / D_0 - KL q p
  <-> alpha = 0 \/ lam = 0 \/ (forall i j, i <> k -> j <> k -> p i = p j).
Proof.
  rewrite <- (@bound_equality_along_ray V p k lam sampled alpha). unfold upper_bound.
  rewrite D_0_covariance, (entropy_ext q _ q_is), (KL_ext q _ p p q_is), q_is, q_at_k by easy. reflexivity.
Qed.
(* D_0 > 0 in closed form, and q_k − p_k has the sign of α. *)
Theorem step_bound_denominator : 0 < D_0 /\ D_0 = p k * (lam * Sum (fun i => p i * p i) (others k) + (1 - lam * p k) * (1 - p k)).
Proof. rewrite D_0_covariance. assert (S := sampled). split; [apply D_0_pos|apply D_0_is]; exact S. Qed.
Theorem sampled_token_gains : (0 < alpha -> p k < q k) /\ (alpha < 0 -> q k < p k).
Proof.
  assert (S := sampled). rewrite q_is, q_at_k by easy. assert (E := q_k_0 p k lam).
  split; intros A; [assert (M := q_k_increases p k lam 0 alpha A)|assert (M := q_k_increases p k lam alpha 0 A)]; lra.
Qed.
End Statement.
