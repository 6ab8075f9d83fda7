(* T3, many small steps on one token: a curve of logits z(t) with z' = a(t) (e_k − p(z)).

   Boundary lemma. Where S_c = 0, dS_c/dt = a ((1 − p_k) G + Var_p(d) + Cov_p(p, S)) with d = e_k − p,
   G = E_p[d²] E_r w − E_r[p² w], w_i = log(p_k / p_i), r the policy given that the token is not k;
   G >= 0, Var_p(d) > 0, Cov_p(p, S) >= 0.

   Hence for a >= 0 the region S_c >= 0 is never left, and entropy rises at most once and then falls for good;
   for a <= 0 the region S_c <= 0 is never left. *)
From Coq Require Import Reals Lra Psatz List.
From Coquelicot Require Import Coquelicot.
From EntropyTheory Require Import Sums Calculus Policy Discriminant Gradient Baseline Ray.
Open Scope R_scope.

(* A function with slope b Φ, b >= 0, where Φ > 0 at the zeros: it does not leave [0, ∞). *)
Section Barrier.
Variables (f b Phi : R -> R) (lo hi : R).
Hypothesis f_derive : forall t, lo < t < hi -> is_derive f t (b t * Phi t).
Hypothesis b_nonneg : forall t, lo < t < hi -> 0 <= b t.
Hypothesis Phi_continuous : forall t, lo < t < hi -> continuous Phi t.
Hypothesis Phi_at_zero : forall t, lo < t < hi -> f t = 0 -> 0 < Phi t.

Lemma positive_nearby (h : R -> R) t : continuous h t -> 0 < h t -> exists d, 0 < d /\ forall u, t - d < u < t + d -> 0 < h u.
Proof.
  intros C P. destruct (C (fun y => 0 < y) (open_gt 0 (h t) P)) as [[d D] H]. exists d. split; [easy|].
  intros u U. apply H. unfold ball; simpl. unfold AbsRing_ball, abs, minus, plus, opp; simpl. apply Rabs_def1; lra.
Qed.
Lemma f_continuous t : lo < t < hi -> continuous f t.
Proof. intros T. apply (ex_derive_continuous f). eexists. now apply f_derive. Qed.
Theorem barrier s t : lo < s -> s <= t -> t < hi -> 0 <= f s -> 0 <= f t.
Proof.
  intros S L T P. destruct (Rle_lt_dec 0 (f t)) as [|N]; [easy|exfalso].
  destruct (completeness (fun u => s <= u <= t /\ 0 <= f u)) as [m [Upper Least]].
  { exists t. intros u U. lra. }
  { exists s. lra. }
  assert (M0 : s <= m) by (apply Upper; lra). assert (M1 : m <= t) by (apply Least; intros u U; lra).
  assert (Mi : lo < m < hi) by lra.
  (* f m >= 0: the supremum is attained *)
  assert (F0 : 0 <= f m).
  { destruct (Rle_lt_dec 0 (f m)) as [|F]; [easy|exfalso].
    destruct (positive_nearby (fun u => - f u) m) as [d [D H]].
    { apply (continuous_opp f). now apply f_continuous. } { lra. }
    enough (m <= m - d) by lra. apply Least. intros u [U Fu]. destruct (Rle_lt_dec u (m - d)) as [|G]; [easy|].
    assert (u <= m) by (apply Upper; lra). assert (0 < - f u) by (apply H; lra). lra. }
  assert (M2 : m < t) by (destruct M1 as [|E]; [easy|rewrite E in F0; lra]).
  assert (After : forall u, m < u <= t -> f u < 0).
  { intros u U. destruct (Rlt_le_dec (f u) 0) as [|G]; [easy|]. assert (u <= m) by (apply Upper; lra). lra. }
  assert (Fm : f m = 0).
  { destruct F0 as [F|]; [exfalso|easy]. destruct (positive_nearby f m (f_continuous m Mi) F) as [d [D H]].
    set (u := Rmin t (m + d / 2)). assert (U1 : u <= t) by apply Rmin_l. assert (U2 : u <= m + d / 2) by apply Rmin_r.
    assert (U3 : m < u) by (apply Rmin_glb_lt; lra). assert (A := After u). assert (0 < f u) by (apply H; lra). lra. }
  destruct (positive_nearby Phi m (Phi_continuous m Mi) (Phi_at_zero m Mi Fm)) as [d [D H]].
  set (u := Rmin t (m + d / 2)). assert (U1 : u <= t) by apply Rmin_l. assert (U2 : u <= m + d / 2) by apply Rmin_r.
  assert (U3 : m < u) by (apply Rmin_glb_lt; lra). assert (A := After u).
  assert (f m <= f u); [|lra].
  apply (nondecreasing_from_derivative f (fun v => b v * Phi v)); [lra| |].
  - intros v W. apply f_derive. lra.
  - intros v W. apply Rmult_le_pos; [apply b_nonneg; lra|]. left. apply H. lra.
Qed.
End Barrier.

(* The three parts, and their signs on S_c = 0. *)
Section Boundary.
Context {V : vocabulary}.
Implicit Types (p v f : V -> R) (i k : V).

Definition grpo_direction p k i : R := unit_vector k i - p i. (* e_k − p *)
Definition mean_rest p k f : R := Sum (fun i => p i * f i) (others k) / (1 - p k). (* E_r f *)
Definition G p k : R :=
  mean p (fun i => grpo_direction p k i ^ 2) * mean_rest p k (fun i => ln (p k) - ln (p i))
  - mean_rest p k (fun i => p i ^ 2 * (ln (p k) - ln (p i))).

(* The slope of S_c along z' = v, from p_i' = p_i δ_i, (log p_i)' = δ_i, H' = −Σ v S. *)
Definition centred_slope p k v : R :=
  let delta i := v i - mean p v in
  let dH := - Σ i, v i * discriminant p i in
  let dS i := delta i * discriminant p i + p i * (dH + delta i) in
  dS k - Σ i, (p i * delta i * discriminant p i + p i * dS i).

Lemma centred_discriminant_derive (z : R -> V -> R) v t k : (forall i, is_derive (fun s => z s i) t (v i)) ->
  is_derive (fun s => centred_discriminant (softmax (z s)) k) t (centred_slope (softmax (z t)) k v).
Proof.
  intros D. set (p := softmax (z t)).
  assert (S : forall i, is_derive (fun s => discriminant (softmax (z s)) i) t
    ((v i - mean p v) * discriminant p i + p i * (- (Σ j, v j * discriminant p j) + (v i - mean p v)))).
  { intros i. now apply discriminant_derive. }
  unfold centred_discriminant, centred_slope. apply derive_minus; [apply S|].
  unfold baseline, mean at 1. apply (derive_Sum (fun s i => softmax (z s) i * discriminant (softmax (z s)) i)).
  intros i _. apply (derive_mult (fun s => softmax (z s) i) (fun s => discriminant (softmax (z s)) i)); [now apply softmax_derive|apply S].
Qed.

Lemma mean_grpo_direction p k : mean p (grpo_direction p k) = p k - Σ i, p i * p i.
Proof.
  unfold mean, grpo_direction. rewrite (Sum_ext _ (fun i => unit_vector k i * p i - p i * p i)) by (intros; ring).
  now rewrite Sum_minus, sum_unit_vector.
Qed.
Lemma unit_vector_square k i : unit_vector k i * unit_vector k i = unit_vector k i.
Proof. unfold unit_vector. destruct (same_token i k); ring. Qed.
Lemma mean_square_direction p k : mean p (fun i => grpo_direction p k i ^ 2) = p k - 2 * p k ^ 2 + Σ i, p i ^ 3.
Proof.
  unfold mean, grpo_direction.
  rewrite (Sum_ext _ (fun i => unit_vector k i * p i - 2 * (unit_vector k i * p i ^ 2) + p i ^ 3)).
  - rewrite Sum_plus, Sum_minus, Sum_scal, !sum_unit_vector. ring.
  - intros i _. replace (p i * (unit_vector k i - p i) ^ 2) with
      (unit_vector k i * unit_vector k i * p i - 2 * (unit_vector k i * p i ^ 2) + p i ^ 3) by ring. now rewrite unit_vector_square.
Qed.
Lemma mean_discriminant_direction p k : Σ i, p i * (grpo_direction p k i * discriminant p i)
  = p k * discriminant p k - Σ i, p i * (p i * discriminant p i).
Proof.
  unfold grpo_direction.
  rewrite (Sum_ext _ (fun i => unit_vector k i * (p i * discriminant p i) - p i * (p i * discriminant p i))) by (intros; ring).
  now rewrite Sum_minus, sum_unit_vector.
Qed.
(* (1 − p_k) G = S_k (1 − 2 p_k) + Σ p_i² S_i *)
Lemma G_is p k : total p = 1 -> p k < 1 ->
  (1 - p k) * G p k = discriminant p k * (1 - 2 * p k) + Σ i, p i * (p i * discriminant p i).
Proof.
  intros T K. unfold G, mean_rest. rewrite mean_square_direction.
  assert (W : Sum (fun i => p i * (ln (p k) - ln (p i))) (others k) = ln (p k) + entropy p).
  { assert (S := sum_split (fun i => p i * (ln (p k) - ln (p i))) k). cbv beta in S.
    rewrite (Sum_ext (fun i => p i * (ln (p k) - ln (p i))) (fun i => p i * ln (p k) - p i * ln (p i)) (tokens V)) in S by (intros; ring).
    rewrite Sum_minus, Sum_scal_r, T in S. unfold entropy. lra. }
  assert (C : Sum (fun i => p i * (p i ^ 2 * (ln (p k) - ln (p i)))) (others k)
    = (ln (p k) + entropy p) * (Σ i, p i ^ 3) - Σ i, p i * (p i * discriminant p i)).
  { assert (S := sum_split (fun i => p i * (p i ^ 2 * (ln (p k) - ln (p i)))) k). cbv beta in S.
    rewrite (Sum_ext (fun i => p i * (p i ^ 2 * (ln (p k) - ln (p i)))) (fun i => (ln (p k) + entropy p) * p i ^ 3 - p i * (p i * discriminant p i)) (tokens V)) in S
      by (intros; unfold discriminant; ring).
    rewrite Sum_minus, Sum_scal in S. lra. }
  rewrite W, C. unfold discriminant at 2. field. lra.
Qed.
(* Var_p(d) = p_k (1 − p_k) − ... , in the form the slope needs. *)
Lemma variance_direction p k : variance p (grpo_direction p k)
  = p k - 2 * p k ^ 2 + (Σ i, p i ^ 3) - (p k - Σ i, p i * p i) ^ 2.
Proof.
  unfold variance, covariance. rewrite mean_grpo_direction. replace (mean p (fun i => grpo_direction p k i * grpo_direction p k i))
    with (mean p (fun i => grpo_direction p k i ^ 2)) by (apply Sum_ext; intros; ring). rewrite mean_square_direction. ring.
Qed.

Lemma centred_slope_scale p k v a : centred_slope p k (fun i => a * v i) = a * centred_slope p k v.
Proof.
  unfold centred_slope. assert (M : mean p (fun i => a * v i) = a * mean p v).
  { unfold mean. rewrite <- Sum_scal. apply Sum_ext. intros. ring. }
  rewrite M. rewrite (Sum_ext (fun i => a * v i * discriminant p i) (fun i => a * (v i * discriminant p i))) by (intros; ring).
  rewrite Sum_scal. set (h := Σ i, v i * discriminant p i).
  rewrite (Sum_ext _ (fun i => a * (p i * (v i - mean p v) * discriminant p i
    + p i * ((v i - mean p v) * discriminant p i + p i * (- h + (v i - mean p v)))))) by (intros; ring).
  rewrite Sum_scal. ring.
Qed.

Theorem boundary_slope p k : total p = 1 -> p k < 1 -> centred_discriminant p k = 0 ->
  centred_slope p k (grpo_direction p k)
  = (1 - p k) * G p k + variance p (grpo_direction p k) + covariance p p (discriminant p).
Proof.
  intros T K Z. rewrite G_is, variance_direction by easy. unfold centred_discriminant in Z.
  assert (N : mean p (discriminant p) = discriminant p k) by (unfold baseline in Z; lra).
  unfold covariance. rewrite N. fold (mean p (fun i => p i * discriminant p i)).
  unfold centred_slope. rewrite mean_grpo_direction.
  assert (H : Σ i, grpo_direction p k i * discriminant p i = 0).
  { unfold grpo_direction. rewrite (Sum_ext _ (fun i => unit_vector k i * discriminant p i - p i * discriminant p i)) by (intros; ring).
    rewrite Sum_minus, sum_unit_vector. fold (mean p (discriminant p)). lra. }
  rewrite H. set (M := Σ i, p i * p i) in *. set (m := p k - M) in *.
  rewrite (Sum_ext _ (fun i => 2 * (p i * (grpo_direction p k i * discriminant p i)) - 2 * m * (p i * discriminant p i)
    + (unit_vector k i * p i ^ 2 - p i ^ 3 - m * (p i * p i)))) by (intros; unfold grpo_direction; ring).
  rewrite Sum_plus, !Sum_minus, !Sum_scal, sum_unit_vector, mean_discriminant_direction.
  fold (mean p (discriminant p)) M. rewrite N. change (mean p p) with M. unfold mean.
  unfold grpo_direction. rewrite unit_vector_same. unfold m. ring.
Qed.

Theorem boundary_G_nonneg p k : policy p -> (exists j, j <> k) -> centred_discriminant p k = 0 -> 0 <= G p k.
Proof.
  intros P [j J] Z.
  assert (ray : sampled_token p k 1).
  { constructor; [lra|lra|easy|]. intros E. apply others_spec in J. rewrite E in J. easy. }
  assert (K := p_k_lt_1 p k 1). assert (I := Psi_inequality p k 1 (w p k) 0 (w_antitone p k 1)).
  fold (Psi p k 1) in I. rewrite (Psi_0 p k 1) in I. unfold S_d in I. unfold centred_discriminant in Z.
  replace (discriminant p k - 1 * baseline p) with 0 in I by lra. rewrite Rmult_0_l in I.
  assert (C := c1_pos p k 1 0). assert (D : 0 <= dPsi_ p k 1 (w p k) 0) by nra.
  enough (dPsi_ p k 1 (w p k) 0 = (1 - p k) * G p k) by nra.
  unfold dPsi_. rewrite T_0 by exact ray. unfold T2. rewrite !B_0, e_k_0. unfold d_k.
  unfold G, mean_rest, mean. rewrite (sum_split (fun i => p i * grpo_direction p k i ^ 2) k).
  rewrite (Sum_ext (fun i => p i * grpo_direction p k i ^ 2) (fun i => p i * (p i * p i)) (others k)).
  - unfold grpo_direction. rewrite unit_vector_same. unfold w.
    rewrite (Sum_ext (fun i => p i * (p i * (p i * (ln (p k) - ln (p i))))) (fun i => p i * (p i ^ 2 * (ln (p k) - ln (p i))))) by (intros; ring).
    field. lra.
  - intros i O. apply others_spec in O. unfold grpo_direction. rewrite unit_vector_other by easy. ring.
Qed.
Theorem boundary_variance_pos p k : policy p -> (exists j, j <> k) -> 0 < variance p (grpo_direction p k).
Proof.
  intros [P T] [j J]. assert (C := Chebyshev_equal p (grpo_direction p k) (grpo_direction p k) (tokens V)
    (fun i _ => Rlt_le _ _ (P i)) (fun i i' _ _ => Rle_0_sqr _)). rewrite T in C. unfold variance, covariance, mean.
  destruct C as [|E]; [lra|exfalso]. rewrite <- T in E at 1.
  assert (X := Chebyshev_equality p (grpo_direction p k) (grpo_direction p k) (tokens V)
    (fun i _ => P i) (fun i i' _ _ => Rle_0_sqr _) E k j (tokens_complete V k) (tokens_complete V j)).
  unfold grpo_direction in X. rewrite unit_vector_same, unit_vector_other in X by easy.
  assert (p k <= 1) by (apply policy_le_1; easy). assert (Pj := P j). nra.
Qed.
Theorem covariance_p_S_nonneg p : policy p -> 0 <= covariance p p (discriminant p).
Proof.
  intros Pol. assert (N := proj2 (baseline_nonneg p Pol)). destruct Pol as [P T].
  assert (A := Chebyshev_equal (fun i => p i * p i) p (fun i => entropy p + ln (p i)) (tokens V)).
  assert (B := Chebyshev_equal p p p (tokens V) (fun i _ => Rlt_le _ _ (P i)) (fun i j _ _ => Rle_0_sqr _)). rewrite T in B.
  unfold covariance. fold (baseline p). unfold mean.
  rewrite (Sum_ext (fun i => p i * p i * (entropy p + ln (p i))) (fun i => p i * discriminant p i)) in A by (intros; unfold discriminant; ring).
  fold (mean p (discriminant p)) (baseline p) in A.
  rewrite (Sum_ext (fun i => p i * p i * (p i * (entropy p + ln (p i)))) (fun i => p i * (p i * discriminant p i))) in A by (intros; unfold discriminant; ring).
  rewrite (Sum_ext (fun i => p i * p i * p i) (fun i => p i * (p i * p i))) in A by (intros; ring).
  set (M2 := Σ i, p i * p i) in *. set (M3 := Σ i, p i * (p i * p i)) in *.
  assert (M2p : 0 < M2) by (apply Sum_pos; [apply tokens_nonempty|intros; apply Rmult_lt_0_compat; apply P]).
  assert (A' : M3 * baseline p <= M2 * (Σ i, p i * (p i * discriminant p i))).
  { apply A.
    - intros i _. left. apply Rmult_lt_0_compat; apply P.
    - intros i j _ _. assert (O := ln_same_order (p i) (p j) (P i) (P j)). lra. }
  assert (M2 * M2 * baseline p <= M3 * baseline p) by (apply Rmult_le_compat_r; lra).
  enough (M2 * baseline p <= Σ i, p i * (p i * discriminant p i)) by lra. apply Rmult_le_reg_l with M2; lra.
Qed.
End Boundary.

Section Curve.
Context {V : vocabulary}.
Variables (z : R -> V -> R) (a : R -> R) (k : V) (lo hi : R).
Hypothesis another_token : exists j, j <> k.
Let p t := softmax (z t).
Let S_c t := centred_discriminant (p t) k.
Let H t := entropy (p t).
Hypothesis flow : forall t i, lo < t < hi -> is_derive (fun s => z s i) t (a t * (unit_vector k i - p t i)).

Lemma p_k_below_1 t : p t k < 1.
Proof.
  assert (J := another_token). destruct J as [j J]. assert (T := softmax_total (z t)). rewrite (sum_split _ k) in T. fold (p t) in T.
  enough (0 < Sum (p t) (others k)) by lra. apply Sum_pos; [|intros; apply softmax_pos].
  intros E. apply others_spec in J. now rewrite E in J.
Qed.

(* The boundary lemma. *)
Theorem boundary_lemma t : lo < t < hi -> S_c t = 0 ->
  is_derive S_c t (a t * ((1 - p t k) * G (p t) k + variance (p t) (grpo_direction (p t) k) + covariance (p t) (p t) (discriminant (p t))))
  /\ 0 <= G (p t) k /\ 0 < variance (p t) (grpo_direction (p t) k) /\ 0 <= covariance (p t) (p t) (discriminant (p t)).
Proof.
  intros T Z. assert (P : policy (p t)) by apply softmax_policy. split; [|split; [|split]].
  - rewrite <- boundary_slope by (easy || apply P || apply p_k_below_1). rewrite <- centred_slope_scale.
    apply centred_discriminant_derive. intros i. now apply flow.
  - now apply boundary_G_nonneg.
  - now apply boundary_variance_pos.
  - now apply covariance_p_S_nonneg.
Qed.

Let Phi t := centred_slope (p t) k (grpo_direction (p t) k).
Lemma S_c_derive t : lo < t < hi -> is_derive S_c t (a t * Phi t).
Proof.
  intros T. unfold Phi. rewrite <- centred_slope_scale. apply centred_discriminant_derive. intros i. now apply flow.
Qed.
Lemma Phi_pos t : lo < t < hi -> S_c t = 0 -> 0 < Phi t.
Proof.
  intros T Z. destruct (boundary_lemma t T Z) as [_ [A [B C]]]. unfold Phi.
  rewrite boundary_slope by (easy || apply softmax_total || apply p_k_below_1). assert (K := p_k_below_1 t).
  assert (0 <= (1 - p t k) * G (p t) k) by (apply Rmult_le_pos; lra). lra.
Qed.
(* Φ is a sum of products of p_i, log p_i and H, all differentiable. *)
Lemma ex_Sum (f : R -> V -> R) t : (forall i, ex_derive (fun s => f s i) t) -> ex_derive (fun s => Σ i, f s i) t.
Proof.
  intros E. exists (Σ i, Derive (fun s => f s i) t). apply (derive_Sum f). intros i _. apply Derive_correct, E.
Qed.
Lemma Phi_is_continuous t : lo < t < hi -> continuous Phi t.
Proof.
  intros T. apply (ex_derive_continuous Phi).
  assert (Ep : forall i, ex_derive (fun s => p s i) t).
  { intros i. eexists. apply (softmax_derive z). intros j. now apply flow. }
  assert (El : forall i, ex_derive (fun s => ln (p s i)) t).
  { intros i. eexists. apply (ln_softmax_derive z). intros j. now apply flow. }
  assert (Eh : ex_derive (fun s => entropy (p s)) t).
  { eexists. apply (entropy_chain_rule z). intros j. now apply flow. }
  assert (Es : forall i, ex_derive (fun s => discriminant (p s) i) t).
  { intros i. apply (ex_derive_mult (fun s => p s i) (fun s => entropy (p s) + ln (p s i))); [apply Ep|]. now apply (ex_derive_plus (fun s => entropy (p s))). }
  assert (Ed : forall i, ex_derive (fun s => grpo_direction (p s) k i) t).
  { intros i. apply (ex_derive_minus (fun _ => unit_vector k i) (fun s => p s i)); [apply ex_derive_const|apply Ep]. }
  assert (Em : ex_derive (fun s => mean (p s) (grpo_direction (p s) k)) t).
  { apply (ex_Sum (fun s i => p s i * grpo_direction (p s) k i)). intros i. now apply (ex_derive_mult (fun s => p s i)). }
  assert (Edel : forall i, ex_derive (fun s => grpo_direction (p s) k i - mean (p s) (grpo_direction (p s) k)) t).
  { intros i. now apply (ex_derive_minus (fun s => grpo_direction (p s) k i)). }
  assert (EdH : ex_derive (fun s => - Σ i, grpo_direction (p s) k i * discriminant (p s) i) t).
  { apply (ex_derive_opp (fun s => Σ i, grpo_direction (p s) k i * discriminant (p s) i)).
    apply (ex_Sum (fun s i => grpo_direction (p s) k i * discriminant (p s) i)). intros i. now apply (ex_derive_mult (fun s => grpo_direction (p s) k i)). }
  unfold Phi, centred_slope.
  set (delta s i := grpo_direction (p s) k i - mean (p s) (grpo_direction (p s) k)).
  assert (Edelta : forall i, ex_derive (fun s => delta s i) t) by exact Edel.
  set (dH s := - Σ i, grpo_direction (p s) k i * discriminant (p s) i) in *.
  assert (EdS : forall i, ex_derive (fun s => delta s i * discriminant (p s) i + p s i * (dH s + delta s i)) t).
  { intros i. apply (ex_derive_plus (fun s => delta s i * discriminant (p s) i) (fun s => p s i * (dH s + delta s i))).
    - apply (ex_derive_mult (fun s => delta s i) (fun s => discriminant (p s) i)); auto.
    - apply (ex_derive_mult (fun s => p s i) (fun s => dH s + delta s i)); [apply Ep|]. now apply (ex_derive_plus dH). }
  apply (ex_derive_minus (fun s => delta s k * discriminant (p s) k + p s k * (dH s + delta s k))
    (fun s => Σ i, (p s i * delta s i * discriminant (p s) i + p s i * (delta s i * discriminant (p s) i + p s i * (dH s + delta s i))))); [apply EdS|].
  apply (ex_Sum (fun s i => p s i * delta s i * discriminant (p s) i + p s i * (delta s i * discriminant (p s) i + p s i * (dH s + delta s i)))).
  intros i. apply (ex_derive_plus (fun s => p s i * delta s i * discriminant (p s) i)).
  - apply (ex_derive_mult (fun s => p s i * delta s i)); [now apply (ex_derive_mult (fun s => p s i))|apply Es].
  - now apply (ex_derive_mult (fun s => p s i)).
Qed.
Lemma H_derive t : lo < t < hi -> is_derive H t (- (a t * S_c t)).
Proof.
  intros T. eapply derive_eq; [apply (entropy_chain_rule z); intros i; now apply flow|]. fold (p t). f_equal.
  rewrite (Sum_ext _ (fun i => a t * (unit_vector k i * discriminant (p t) i - p t i * discriminant (p t) i))) by (intros; ring).
  rewrite Sum_scal, Sum_minus, sum_unit_vector. reflexivity.
Qed.

(* Many small steps with a >= 0. *)
Theorem fall_region_is_never_left s t : (forall u, lo < u < hi -> 0 <= a u) ->
  lo < s -> s <= t -> t < hi -> 0 <= S_c s -> 0 <= S_c t.
Proof. intros A. apply (barrier S_c a Phi lo hi S_c_derive A Phi_is_continuous Phi_pos). Qed.
Theorem many_small_steps t1 t2 t3 : (forall u, lo < u < hi -> 0 <= a u) ->
  lo < t1 -> t1 <= t2 <= t3 -> t3 < hi -> Rmin (H t1) (H t3) <= H t2 /\ (0 <= S_c t2 -> H t3 <= H t2).
Proof.
  intros A T1 [L1 L2] T3.
  assert (Fall : 0 <= S_c t2 -> H t3 <= H t2).
  { intros P. enough (- H t2 <= - H t3) by lra.
    apply (nondecreasing_from_derivative (fun u => - H u) (fun u => - - (a u * S_c u)) t2 t3 L2).
    - intros u U. apply derive_opp, H_derive. lra.
    - intros u U. rewrite Ropp_involutive. apply Rmult_le_pos; [apply A; lra|]. apply (fall_region_is_never_left t2 u A); lra. }
  split; [|easy]. destruct (Rle_lt_dec 0 (S_c t2)) as [P|N].
  - apply Rle_trans with (H t3); [apply Rmin_r|auto].
  - apply Rle_trans with (H t1); [apply Rmin_l|].
    apply (nondecreasing_from_derivative H (fun u => - (a u * S_c u)) t1 t2 L1).
    + intros u U. apply H_derive. lra.
    + intros u U. assert (Su : S_c u < 0).
      { destruct (Rlt_le_dec (S_c u) 0) as [|Q]; [easy|]. assert (X : 0 <= S_c t2) by (apply (fall_region_is_never_left u t2 A); lra). lra. }
      assert (Au : 0 <= a u) by (apply A; lra). nra.
Qed.
(* The same for a <= 0. *)
Theorem fall_region_is_never_left_down s t : (forall u, lo < u < hi -> a u <= 0) ->
  lo < s -> s <= t -> t < hi -> S_c s <= 0 -> S_c t <= 0.
Proof.
  intros A S L T N. enough (0 <= - S_c t) by lra.
  apply (barrier (fun u => - S_c u) (fun u => - a u) Phi lo hi) with (s := s); try easy; try lra.
  - intros u U. eapply derive_eq; [apply derive_opp, S_c_derive; easy|]. ring.
  - intros u U. assert (a u <= 0) by now apply A. lra.
  - intros u U. now apply Phi_is_continuous.
  - intros u U Z. apply Phi_pos; [easy|lra].
Qed.
End Curve.
