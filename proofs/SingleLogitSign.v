(* B.5, the one-sided sign law of one logit, with x = logit p_k + H_rest (so that S_k = p_k (1 − p_k) x):

   ε S_k >= 0 and ε ≠ 0 imply ΔH < 0. H peaks exactly at ε = −x, with value log(1 + e^{H_rest}). Rises:
     S_k < 0:                  exactly on (0, ε₀), |x| < ε₀ <= 2 |x|;
     S_k > 0 and H_rest < H:   exactly on (ε₀, 0), |ε₀| >= 2 x;
     S_k > 0 and H_rest >= H:  at every ε < 0, and H tends to H_rest from above as ε → −∞;
     S_k = 0:                  nowhere. *)
From Coq Require Import Reals Lra Psatz List.
From Coquelicot Require Import Coquelicot.
From EntropyTheory Require Import Sums Calculus Policy Discriminant Mixture TwoValued SingleLogit.
Open Scope R_scope.

Section SingleLogitSign.
Context {V : vocabulary}.
Variables (z : V -> R) (k : V).
Hypothesis another_token : exists j, j <> k.

Let p := softmax z.
Let q eps := softmax (step z eps (unit_vector k)).
Let H_rest := entropy_of_the_rest p k.
Let x := logit (p k) + H_rest.

Lemma discriminant_sign : (0 < discriminant p k <-> 0 < x) /\ (discriminant p k < 0 <-> x < 0) /\ (discriminant p k = 0 <-> x = 0).
Proof.
  rewrite (what_surrounds_the_token z k another_token : discriminant p k = _). fold p H_rest x.
  assert (R := p_k_range z k another_token). fold p in R. assert (W : 0 < p k * (1 - p k)) by (apply Rmult_lt_0_compat; lra).
  clearbody x. generalize dependent (p k * (1 - p k)). intros c C. split; [|split]; split; intros H; nra.
Qed.
Lemma H_q eps : entropy (q eps) = F 0 H_rest (logit (p k) + eps).
Proof. apply entropy_is_F_of_one_logit, another_token. Qed.
Lemma H_p : entropy p = F 0 H_rest (logit (p k)).
Proof. apply entropy_p_is_F_of_one_logit, another_token. Qed.
Lemma H_rest_nonneg : 0 <= H_rest.
Proof. apply entropy_of_the_rest_bounds, another_token. Qed.

Theorem predicted_fall_is_a_fall eps : eps <> 0 -> 0 <= eps * discriminant p k -> entropy (q eps) < entropy p.
Proof.
  intros N S. destruct discriminant_sign as [Pos [Neg Zero]]. rewrite H_q, H_p.
  destruct (Rtotal_order eps 0) as [L|[E|G]]; [|easy|].
  - assert (x <= 0).
    { destruct (Rle_lt_dec x 0) as [|X]; [easy|]. apply Pos in X. nra. }
    apply F_increasing; unfold x in *; lra.
  - assert (0 <= x).
    { destruct (Rle_lt_dec 0 x) as [|X]; [easy|]. apply Neg in X. nra. }
    apply F_decreasing; unfold x in *; lra.
Qed.
Theorem peak_of_one_logit : entropy (q (- x)) = ln (1 + exp H_rest) /\ forall eps, eps <> - x -> entropy (q eps) < ln (1 + exp H_rest).
Proof.
  assert (P := F_peak_value 0 H_rest). rewrite exp_0 in P. rewrite <- P. split; [|intros eps N]; rewrite H_q.
  - f_equal. unfold x. ring.
  - apply F_below_peak. unfold x in N. lra.
Qed.
Theorem rise_of_an_unlikely_token : discriminant p k < 0 ->
  exists root, - x < root <= 2 * - x /\ forall eps, entropy p < entropy (q eps) <-> 0 < eps < root.
Proof.
  intros S. apply (proj1 (proj2 discriminant_sign)) in S.
  destruct (root_beyond_peak 0 H_rest (logit (p k)) H_rest_nonneg) as [r [R E]]; [unfold x in S; lra|].
  exists (r - logit (p k)). split; [unfold x; lra|]. intros eps. rewrite H_q, H_p. split.
  - intros L. split.
    + destruct (Rlt_le_dec 0 eps) as [|[G|G]]; [easy| |rewrite G, Rplus_0_r in L; lra].
      assert (U := F_increasing 0 H_rest (logit (p k) + eps) (logit (p k))). unfold x in S. lra.
    + destruct (Rlt_le_dec eps (r - logit (p k))) as [|[G|G]]; [easy| |].
      * assert (U := F_decreasing 0 H_rest r (logit (p k) + eps)). lra.
      * rewrite <- G in L. replace (logit (p k) + (r - logit (p k))) with r in L by ring. lra.
  - intros [A B]. destruct (Rle_lt_dec (logit (p k) + eps) (0 - H_rest)) as [L|L].
    + apply F_increasing; lra.
    + rewrite <- E. apply F_decreasing; lra.
Qed.
Theorem rise_of_a_likely_token : 0 < discriminant p k -> H_rest < entropy p ->
  exists root, root <= - (2 * x) /\ forall eps, entropy p < entropy (q eps) <-> root < eps < 0.
Proof.
  intros S H. apply (proj1 discriminant_sign) in S. rewrite H_p in H.
  destruct (root_before_peak 0 H_rest (logit (p k)) H_rest_nonneg) as [r [R0 [R E]]]; [unfold x in S; lra|easy|].
  exists (r - logit (p k)). split; [unfold x; lra|]. intros eps. rewrite H_q, H_p. split.
  - intros L. split.
    + destruct (Rlt_le_dec (r - logit (p k)) eps) as [|[G|G]]; [easy| |].
      * assert (U := F_increasing 0 H_rest (logit (p k) + eps) r). lra.
      * rewrite G in L. replace (logit (p k) + (r - logit (p k))) with r in L by ring. lra.
    + destruct (Rlt_le_dec eps 0) as [|[G|G]]; [easy| |rewrite <- G, Rplus_0_r in L; lra].
      assert (U := F_decreasing 0 H_rest (logit (p k)) (logit (p k) + eps)). unfold x in S. lra.
  - intros [A B]. destruct (Rle_lt_dec (logit (p k) + eps) (0 - H_rest)) as [L|L].
    + rewrite <- E. apply F_increasing; lra.
    + apply F_decreasing; lra.
Qed.
Theorem rise_without_flip : 0 < discriminant p k -> entropy p <= H_rest -> forall eps, eps < 0 -> entropy p < entropy (q eps).
Proof.
  intros S H eps L. destruct (Rle_lt_dec (logit (p k) + eps) (0 - H_rest)) as [G|G].
  - apply Rle_lt_trans with H_rest; [easy|]. rewrite H_q. now apply F_above_b.
  - rewrite H_q, H_p. apply F_decreasing; lra.
Qed.
Theorem no_flip_condition : entropy p <= H_rest <-> binary_entropy (p k) <= p k * entropy p.
Proof.
  assert (E := entropy_in_two_parts z k another_token). cbv beta zeta in E. fold p H_rest in E.
  assert (R := p_k_range z k another_token). fold p in R.
  assert (X : (1 - p k) * (H_rest - entropy p) = p k * entropy p - binary_entropy (p k)) by lra. split; intros H; [nra|].
  destruct (Rle_lt_dec (entropy p) H_rest) as [|G]; [easy|]. nra.
Qed.
(* H → H_rest as ε → −∞. *)
Theorem limit_of_lowering : is_lim (fun eps => entropy (q eps)) m_infty H_rest.
Proof.
  apply is_lim_spec. intros [d D]. simpl. exists (- Rabs (logit (p k)) - H_rest - 9 / d - 1). intros eps L. rewrite H_q.
  set (y := logit (p k) + eps) in *. assert (A := Rle_abs (logit (p k))). assert (N := H_rest_nonneg).
  assert (P : 0 < 9 / d) by (apply Rdiv_lt_0_compat; lra). assert (Y : y < - H_rest - 9 / d - 1) by (unfold y; lra).
  assert (Lo := F_above_b 0 H_rest y). assert (Up := F_left_limit 0 H_rest (- y)). rewrite Ropp_involutive in Up.
  assert (S : 9 / - y < d).
  { apply Rmult_lt_reg_r with (- y); [lra|]. unfold Rdiv. rewrite Rmult_assoc, Rinv_l, Rmult_1_r by lra.
    assert (Z : 9 / d * d < - y * d) by (apply Rmult_lt_compat_r; lra). unfold Rdiv in Z. rewrite Rmult_assoc, Rinv_l in Z by lra. lra. }
  rewrite Rabs_right; lra.
Qed.
(* S_k = 0: every step lowers entropy. *)
Corollary no_rise_at_the_boundary eps : discriminant p k = 0 -> eps <> 0 -> entropy (q eps) < entropy p.
Proof. intros S N. apply predicted_fall_is_a_fall; [easy|]. rewrite S. lra. Qed.
End SingleLogitSign.
