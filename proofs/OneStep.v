(* T3, one step of any size on one token: a ray z + t d with d = e_k − λ π, 0 <= λ <= 1, π any policy.

   S_c(z) = S_k − N has gradient s. Where S_c = 0, s_k > s_j for every other token j. Because Σ s_i = 0 and
   d = const + Σ_{j≠k} c_j (e_k − e_j) with c_j >= 0, S_c then grows along d. So along the ray S_c crosses 0 upwards
   only: from S_c >= 0 no step α >= 0 leads to S_c < 0, from S_c <= 0 no step α <= 0 leads to S_c > 0.

   For s_k > s_j split the policy at k: Q = p_k, r the policy of the others, H its entropy, M = Σ r², x = logit Q + H,
   K = Q x, a = r_j, u = H + log a. On S_c = 0, (1 + M) K = Σ r² (H + log r), and s_k − s_j = (1 − Q)² `gap`. *)
From Coq Require Import Reals Lra Psatz List.
From Coquelicot Require Import Coquelicot.
From EntropyTheory Require Import Sums Calculus Policy Discriminant Gradient ManySmallSteps.
Open Scope R_scope.

Definition gap (Q a M u K : R) : R :=
  K * ((1 + a) * ((1 - Q) * (1 + M) - 2 * a)) + a * (Q * (1 + M) - M + 2 * a) * u
  + Q * (1 + M) + a * (Q * (1 + M) - M) + a ^ 2.

(* Three cases: a the largest r; a smaller with u >= 0; a smaller with u < 0. *)
Section Numbers.
Variables Q a M u K : R.
Hypothesis Q_pos : 0 < Q.
Hypothesis Q_half : Q <= 1 / 2.
Hypothesis Q_large : M <= Q * (1 + M).
Hypothesis a_pos : 0 < a.
Hypothesis M_pos : 0 < M.
Hypothesis M_le_1 : M <= 1.
Hypothesis K_nonneg : 0 <= K.

Lemma gap_of_the_likeliest : M <= a -> 0 <= u -> K * (1 + M) <= M * u -> 0 < gap Q a M u K.
Proof.
  intros A U L.
  assert (C : (1 + a) * K <= a * u).
  { apply Rmult_le_reg_r with (1 + M); [lra|]. apply Rle_trans with ((1 + a) * (M * u)); [nra|].
    replace (a * u * (1 + M)) with ((a + a * M) * u) by ring. replace ((1 + a) * (M * u)) with ((M + a * M) * u) by ring.
    apply Rmult_le_compat_r; lra. }
  assert (E : gap Q a M u K = K * ((1 + a) * ((1 - Q) * (1 + M))) + 2 * a * (a * u - (1 + a) * K)
    + a * (Q * (1 + M) - M) * u + Q * (1 + M) + a * (Q * (1 + M) - M) + a ^ 2) by (unfold gap; ring).
  assert (0 <= K * ((1 + a) * ((1 - Q) * (1 + M)))) by (repeat apply Rmult_le_pos; lra).
  assert (0 <= 2 * a * (a * u - (1 + a) * K)) by (repeat apply Rmult_le_pos; lra).
  assert (0 <= a * (Q * (1 + M) - M) * u) by (repeat apply Rmult_le_pos; lra).
  assert (0 <= a * (Q * (1 + M) - M)) by (apply Rmult_le_pos; lra). nra.
Qed.

Hypothesis a_half : a <= 1 / 2.
Hypothesis a_square : 2 * a ^ 2 <= M.

(* The loss in K has at most the factor k. *)
Let k := (1 + a) * (4 * a - 1 - M) / 2.
Lemma gap_below : - (k * K) + a * (Q * (1 + M) - M + 2 * a) * u + Q * (1 + M) + a ^ 2 <= gap Q a M u K.
Proof.
  assert (0 <= K * ((1 + a) * ((1 / 2 - Q) * (1 + M)))) by (repeat apply Rmult_le_pos; lra).
  assert (0 <= a * (Q * (1 + M) - M)) by (apply Rmult_le_pos; lra).
  assert (E : gap Q a M u K = K * ((1 + a) * ((1 / 2 - Q) * (1 + M))) + a * (Q * (1 + M) - M)
    + (- (k * K) + a * (Q * (1 + M) - M + 2 * a) * u + Q * (1 + M) + a ^ 2)) by (unfold gap, k; field). lra.
Qed.
Lemma gap_of_a_likely_token m l : a ^ 2 + m ^ 2 <= M -> 0 <= u -> 0 <= l -> a * l <= m -> K * (1 + M) <= M * (u + l) ->
  0 < gap Q a M u K.
Proof.
  intros S U L Al B. assert (G := gap_below).
  assert (KB : k * K <= 3 / 4 * a ^ 2 * (u + l)).
  { assert (0 <= 3 / 4 * a ^ 2 * (u + l)) by (repeat apply Rmult_le_pos; nra).
    destruct (Rle_lt_dec k 0) as [N|P]; [assert (k * K <= 0) by nra; lra|].
    assert (A4 : 0 < 4 * a - 1 - M) by (unfold k in P; nra).
    assert (KM : k * M <= 3 / 4 * a ^ 2).
    { assert (M * (4 * a - 1 - M) <= a ^ 2) by (assert (0 <= (4 * a - 1 - 2 * M) ^ 2) by apply pow2_ge_0; nra).
      assert (0 <= M * (4 * a - 1 - M)) by (apply Rmult_le_pos; lra).
      replace (k * M) with ((1 + a) / 2 * (M * (4 * a - 1 - M))) by (unfold k; field).
      apply Rle_trans with (3 / 4 * (M * (4 * a - 1 - M))); [apply Rmult_le_compat_r|]; lra. }
    assert (K <= M * (u + l)) by nra.
    apply Rle_trans with (k * (M * (u + l))); [apply Rmult_le_compat_l; lra|].
    rewrite <- Rmult_assoc. apply Rmult_le_compat_r; lra. }
  assert (a ^ 2 * l <= M / 2).
  { replace (a ^ 2 * l) with (a * (a * l)) by ring. apply Rle_trans with (a * m); [apply Rmult_le_compat_l; lra|].
    assert (0 <= (a - m) ^ 2) by apply pow2_ge_0. nra. }
  assert (0 <= a * (Q * (1 + M) - M) * u) by (repeat apply Rmult_le_pos; lra).
  assert (0 <= a ^ 2 * u) by (apply Rmult_le_pos; [apply pow2_ge_0|easy]). nra.
Qed.
Lemma gap_of_an_unlikely_token H : u < 0 -> - (a * u) <= M / 2 -> K <= Q * H -> 0 <= H -> a * H <= 1 - a ->
  0 < gap Q a M u K.
Proof.
  intros U Au KQ HP AH. assert (G := gap_below).
  assert (LU : (Q * (1 + M) - M + 2 * a) * - (a * u) <= Q * (1 + M) / 2).
  { apply Rle_trans with ((Q * (1 + M) - M + 2 * a) * (M / 2)); [apply Rmult_le_compat_l; lra|].
    assert ((Q * (1 + M) - M) * M <= (Q * (1 + M) - M) * 1) by (apply Rmult_le_compat_l; lra). nra. }
  assert (LK : k * K <= Q * (1 + M) / 2).
  { assert (0 < Q * (1 + M)) by (apply Rmult_lt_0_compat; lra).
    destruct (Rle_lt_dec k 0) as [N|P]; [assert (k * K <= 0) by nra; lra|].
    assert (KH : k * H <= (1 + M) / 2).
    { apply Rmult_le_reg_l with a; [easy|]. apply Rle_trans with (k * (1 - a)); [nra|].
      apply Rle_trans with ((1 + a) * (4 * a - 1 - 2 * a ^ 2) / 2 * (1 - a)).
      - apply Rmult_le_compat_r; [lra|]. unfold k. nra.
      - apply Rle_trans with (a * ((1 + 2 * a ^ 2) / 2)); [|apply Rmult_le_compat_l; lra]. nra. }
    apply Rle_trans with (k * (Q * H)); [apply Rmult_le_compat_l; lra|]. nra. }
  assert (0 < a ^ 2) by nra. nra.
Qed.
End Numbers.

Lemma ln_ratio_below a b : 0 < a -> 0 < b -> a * (ln b - ln a) <= b / 2.
Proof.
  intros A B. assert (E := exp_of_log_ratio a b A B). set (t := ln b - ln a) in *.
  assert (X := exp_ineq1_le (t - 1)). assert (Y := exp_ineq1_le 1). assert (P := exp_pos (t - 1)).
  assert (Z : exp t = exp (t - 1) * exp 1) by (rewrite <- exp_plus; f_equal; ring).
  assert (2 * t <= b / a) by nra. replace b with (a * (b / a)) by (field; lra). nra.
Qed.

Lemma largest {A : Type} (f : A -> R) (l : list A) : l <> nil -> exists x, In x l /\ forall y, In y l -> f y <= f x.
Proof.
  induction l as [|y l IH]; [easy|]. intros _. destruct l as [|y' l].
  - exists y. split; [now left|]. intros z [->|[]]. lra.
  - destruct IH as [x [I L]]; [easy|]. destruct (Rle_lt_dec (f y) (f x)) as [C|C].
    + exists x. split; [now right|]. intros z [->|J]; [easy|auto].
    + exists y. split; [now left|]. intros z [->|J]; [lra|]. assert (f z <= f x) by auto. lra.
Qed.
Lemma Sum_two {A : Type} (f : A -> R) (l : list A) x y : (forall z, In z l -> 0 <= f z) -> x <> y ->
  In x l -> In y l -> f x + f y <= Sum f l.
Proof.
  induction l as [|z l IH]; simpl; intros P D I J; [easy|].
  assert (Pl : forall w, In w l -> 0 <= f w) by auto.
  destruct I as [->|I], J as [E|J].
  - now destruct D.
  - assert (f y <= Sum f l) by now apply Sum_In. lra.
  - subst. assert (f x <= Sum f l) by now apply Sum_In. lra.
  - assert (f x + f y <= Sum f l) by auto. assert (0 <= f z) by auto. lra.
Qed.

(* The policy of the other tokens. *)
Section Split.
Context {V : vocabulary} (p : V -> R) (k : V).
Hypothesis p_policy : policy p.
Hypothesis another_token : exists j, j <> k.
Notation rest := (others k).

Definition r (i : V) : R := p i / (1 - p k).
Definition H_r : R := - Sum (fun i => r i * ln (r i)) rest.
Definition M_r : R := Sum (fun i => r i ^ 2) rest.
Definition N_r : R := Sum (fun i => r i ^ 2 * (H_r + ln (r i))) rest.
Definition tilt : R := ln (p k) - ln (1 - p k) + H_r. (* x *)

Lemma rest_nonempty : rest <> nil.
Proof. destruct another_token as [j J]. intros E. apply others_spec in J. now rewrite E in J. Qed.
Lemma sum_p_rest : Sum p rest = 1 - p k.
Proof. assert (T := proj2 p_policy). rewrite (sum_split p k) in T. lra. Qed.
Lemma remainder_pos : 0 < 1 - p k.
Proof. rewrite <- sum_p_rest. apply Sum_pos; [apply rest_nonempty|intros; apply p_policy]. Qed.
Lemma r_pos i : 0 < r i.
Proof. apply Rdiv_lt_0_compat; [apply p_policy|apply remainder_pos]. Qed.
Lemma p_is_r i : p i = (1 - p k) * r i.
Proof. assert (P := remainder_pos). unfold r. field. lra. Qed.
Lemma r_total : Sum r rest = 1.
Proof. assert (P := remainder_pos). unfold r, Rdiv. rewrite Sum_scal_r, sum_p_rest. field. lra. Qed.
Lemma r_le_1 i : In i rest -> r i <= 1.
Proof. intros I. rewrite <- r_total. apply Sum_In; [intros; left; apply r_pos|easy]. Qed.
Lemma M_r_pos : 0 < M_r.
Proof. apply Sum_pos; [apply rest_nonempty|]. intros i _. assert (P := r_pos i). nra. Qed.

Lemma M_r_le m : (forall i, In i rest -> r i <= m) -> M_r <= m.
Proof.
  intros L. apply Rle_trans with (Sum (fun i => m * r i) rest); [|rewrite Sum_scal, r_total; lra].
  apply Sum_le. intros i I. assert (P := r_pos i). assert (Q := L i I). nra.
Qed.
Lemma M_r_le_1 : M_r <= 1.
Proof. apply M_r_le, r_le_1. Qed.
(* N_r >= M (H + log M), and H + log M >= 0: two divergences. *)
Lemma N_r_above : M_r * (H_r + ln M_r) <= N_r.
Proof.
  unfold N_r. assert (P := M_r_pos).
  enough (0 <= Sum (fun i => r i ^ 2 * (H_r + ln (r i)) - r i ^ 2 * (H_r + ln M_r)) rest).
  { rewrite Sum_minus, Sum_scal_r in H. fold M_r in H. lra. }
  replace 0 with (Sum (fun i => r i ^ 2 - M_r * r i) rest) by (rewrite Sum_minus, Sum_scal, r_total; fold M_r; ring).
  apply Sum_le. intros i _. assert (G := Gibbs_term (r i) M_r (r_pos i) P). assert (R := r_pos i). nra.
Qed.
Lemma H_r_above : 0 <= H_r + ln M_r.
Proof.
  assert (P := M_r_pos). apply Rmult_le_reg_l with M_r; [easy|]. rewrite Rmult_0_r.
  replace (M_r * (H_r + ln M_r)) with (Sum (fun i => r i * (M_r * (ln M_r - ln (r i)))) rest).
  - replace 0 with (Sum (fun i => M_r * r i - r i ^ 2) rest) by (rewrite Sum_minus, Sum_scal, r_total; fold M_r; ring).
    apply Sum_le. intros i _. assert (G := Gibbs_term M_r (r i) P (r_pos i)). assert (R := r_pos i). nra.
  - rewrite (Sum_ext _ (fun i => (M_r * ln M_r) * r i - M_r * (r i * ln (r i)))) by (intros; ring).
    rewrite Sum_minus, !Sum_scal, r_total. unfold H_r. ring.
Qed.
Lemma N_r_below m : 0 < m -> (forall i, In i rest -> r i <= m) -> N_r <= M_r * (H_r + ln m).
Proof.
  intros P L. unfold N_r, M_r. rewrite <- Sum_scal_r. apply Sum_le. intros i I.
  apply Rmult_le_compat_l; [apply pow2_ge_0|]. enough (ln (r i) <= ln m) by lra.
  destruct (L i I) as [C|E]; [left; apply ln_increasing; [apply r_pos|easy]|rewrite E; lra].
Qed.
Lemma H_r_nonneg : 0 <= H_r.
Proof.
  assert (A := H_r_above). assert (P := M_r_pos).
  destruct M_r_le_1 as [L|E]; [assert (B := ln_increasing _ _ P L)|rewrite E in A]; rewrite ln_1 in *; lra.
Qed.

(* Entropy, S, N and Σ p² from the split. *)
Lemma entropy_split : entropy p = - (p k * ln (p k)) - (1 - p k) * ln (1 - p k) + (1 - p k) * H_r.
Proof.
  assert (P := remainder_pos). unfold entropy. rewrite (sum_split _ k).
  rewrite (Sum_ext _ (fun i => ((1 - p k) * ln (1 - p k)) * r i + (1 - p k) * (r i * ln (r i)))).
  - rewrite Sum_plus, !Sum_scal, r_total. unfold H_r. ring.
  - intros i _. rewrite (p_is_r i) at 1 2. rewrite ln_mult by (easy || apply r_pos). ring.
Qed.
Lemma S_k_split : discriminant p k = p k * (1 - p k) * tilt.
Proof. unfold discriminant, tilt. rewrite entropy_split. ring. Qed.
Lemma S_split i : discriminant p i = (1 - p k) * r i * (H_r + ln (r i) - p k * tilt).
Proof.
  assert (P := remainder_pos). unfold discriminant, tilt. rewrite entropy_split, (p_is_r i), ln_mult by (easy || apply r_pos). ring.
Qed.
Lemma N_split : baseline p = p k * (p k * (1 - p k) * tilt) + (1 - p k) ^ 2 * (N_r - p k * tilt * M_r).
Proof.
  unfold baseline, mean. rewrite (sum_split _ k), S_k_split. f_equal.
  rewrite (Sum_ext _ (fun i => (1 - p k) ^ 2 * (r i ^ 2 * (H_r + ln (r i)) - (p k * tilt) * r i ^ 2))).
  - rewrite Sum_scal, Sum_minus, Sum_scal. reflexivity.
  - intros i _. rewrite S_split, (p_is_r i) at 1. ring.
Qed.
Lemma squares_split : Σ i, p i ^ 2 = p k ^ 2 + (1 - p k) ^ 2 * M_r.
Proof.
  rewrite (sum_split _ k). f_equal. unfold M_r. rewrite <- Sum_scal. apply Sum_ext. intros i _. rewrite (p_is_r i) at 1. ring.
Qed.
Lemma on_the_boundary : centred_discriminant p k = 0 -> p k * tilt * (1 + M_r) = N_r.
Proof.
  unfold centred_discriminant. rewrite S_k_split, N_split. intros Z. assert (P := remainder_pos).
  apply Rmult_eq_reg_l with ((1 - p k) ^ 2); [lra|nra].
Qed.

(* What S_c = 0 says of Q. *)
Section Boundary.
Hypothesis boundary : centred_discriminant p k = 0.

Lemma K_nonneg_here : 0 <= p k * tilt.
Proof.
  assert (E := on_the_boundary boundary). assert (A := N_r_above). assert (B := H_r_above). assert (P := M_r_pos).
  apply Rmult_le_reg_r with (1 + M_r); [lra|]. rewrite Rmult_0_l, E.
  apply Rle_trans with (M_r * (H_r + ln M_r)); [apply Rmult_le_pos; lra|easy].
Qed.
Lemma Q_above : M_r <= p k * (1 + M_r).
Proof.
  assert (E := on_the_boundary boundary). assert (A := N_r_above). assert (B := H_r_above). assert (P := M_r_pos).
  assert (Pk := proj1 p_policy k). assert (R := remainder_pos).
  destruct (Rle_lt_dec M_r (p k * (1 + M_r))) as [|C]; [easy|exfalso].
  assert (L : ln (p k) < ln (1 - p k) + ln M_r).
  { rewrite <- ln_mult by easy. apply ln_increasing; [easy|]. lra. }
  assert (X : tilt < H_r + ln M_r) by (unfold tilt; lra).
  replace (p k * tilt * (1 + M_r)) with (p k * (1 + M_r) * tilt) in E by ring.
  destruct (Rle_lt_dec 0 tilt) as [T|T]; [nra|].
  assert (0 < p k * (1 + M_r)) by (apply Rmult_lt_0_compat; lra). nra.
Qed.
Lemma Q_at_most_half : p k <= 1 / 2.
Proof.
  assert (E := on_the_boundary boundary). assert (P := M_r_pos). assert (M1 := M_r_le_1). assert (HP := H_r_nonneg).
  assert (Pk := proj1 p_policy k). assert (R := remainder_pos).
  assert (B : N_r <= M_r * H_r) by (assert (B := N_r_below 1 Rlt_0_1 r_le_1); rewrite ln_1 in B; lra).
  destruct (Rle_lt_dec (p k) (1 / 2)) as [|C]; [easy|exfalso].
  assert (L : ln (1 - p k) < ln (p k)) by (apply ln_increasing; lra).
  assert (X : H_r < tilt) by (unfold tilt; lra).
  assert (p k * (1 + M_r) * tilt <= M_r * H_r) by lra. assert (M_r < p k * (1 + M_r)) by nra. nra.
Qed.
Lemma K_below : p k * tilt <= p k * H_r.
Proof.
  assert (Pk := proj1 p_policy k). assert (C := Q_at_most_half). apply Rmult_le_compat_l; [lra|]. unfold tilt.
  enough (ln (p k) <= ln (1 - p k)) by lra.
  destruct (Req_dec (p k) (1 - p k)) as [E|D]; [rewrite <- E; lra|left; apply ln_increasing; lra].
Qed.
Lemma gap_positive j : j <> k -> 0 < gap (p k) (r j) M_r (H_r + ln (r j)) (p k * tilt).
Proof.
  intros J. apply others_spec in J. assert (Pk := proj1 p_policy k). assert (E := on_the_boundary boundary).
  assert (KP := K_nonneg_here). assert (QA := Q_above). assert (QH := Q_at_most_half). assert (MP := M_r_pos).
  assert (M1 := M_r_le_1). assert (RJ := r_pos j). assert (HM := H_r_above). assert (HP := H_r_nonneg).
  destruct (largest r rest rest_nonempty) as [t [I L]]. assert (RT := r_pos t).
  assert (NB := N_r_below (r t) RT L).
  destruct (Rle_lt_dec (r t) (r j)) as [C|C].
  - assert (X : r j = r t) by (assert (r j <= r t) by auto; lra). rewrite X.
    assert (MT := M_r_le (r t) L).
    assert (ln M_r <= ln (r t)) by (destruct MT as [M'|M']; [left; now apply ln_increasing|rewrite M'; lra]).
    apply gap_of_the_likeliest; lra.
  - assert (D : t <> j) by (intros F; rewrite F in C; lra).
    assert (A1 : r t + r j <= 1).
    { rewrite <- r_total. apply Sum_two; auto. intros; left; apply r_pos. }
    assert (A2 : r t ^ 2 + r j ^ 2 <= M_r) by (apply (Sum_two (fun i => r i ^ 2)); auto; intros; apply pow2_ge_0).
    assert (A3 : 2 * r j ^ 2 <= M_r) by nra.
    assert (LT : ln (r j) < ln (r t)) by now apply ln_increasing.
    destruct (Rle_lt_dec 0 (H_r + ln (r j))) as [U|U].
    + apply gap_of_a_likely_token with (m := r t) (l := ln (r t) - ln (r j)); try lra.
      * assert (X := ln_ratio_below (r j) (r t) RJ RT). lra.
    + apply gap_of_an_unlikely_token with (H := H_r); try lra.
      * assert (X := ln_ratio_below (r j) M_r RJ MP). nra.
      * apply K_below.
      * assert (X := Gibbs_term (r j) 1 RJ Rlt_0_1). rewrite ln_1 in X. nra.
Qed.
End Boundary.
End Split.

(* The gradient of S_c(z) = S_k − N in the logits. *)
Section Gradient.
Context {V : vocabulary}.
Implicit Types (p v : V -> R) (i j k : V).

Definition centred_gradient p k i : R :=
  unit_vector k i * (discriminant p k + p k)
  + p i * (2 * baseline p + (Σ j, p j ^ 2) - discriminant p k - p k - p i)
  - (p k - (Σ j, p j ^ 2) + 2 * p i) * discriminant p i.

Lemma centred_slope_is p k v : total p = 1 -> centred_slope p k v = Σ i, v i * centred_gradient p k i.
Proof.
  intros T. unfold centred_slope. cbv zeta. set (E := mean p v). set (D := Σ i, v i * discriminant p i).
  set (P := Σ i, p i ^ 2).
  rewrite (Sum_ext _ (fun i => 2 * (v i * (p i * discriminant p i)) - 2 * E * (p i * discriminant p i) - D * p i ^ 2
    + v i * p i ^ 2 - E * p i ^ 2) (tokens V)) by (intros; ring).
  rewrite !Sum_minus, Sum_plus, !Sum_minus, !Sum_scal. fold P.
  change (Σ i, p i * discriminant p i) with (baseline p).
  symmetry. unfold centred_gradient. fold P.
  rewrite (Sum_ext _ (fun i => unit_vector k i * (v i * (discriminant p k + p k))
    + (2 * baseline p + P - discriminant p k - p k) * (p i * v i) - v i * p i ^ 2
    - (p k - P) * (v i * discriminant p i) - 2 * (v i * (p i * discriminant p i))) (tokens V)) by (intros; ring).
  rewrite !Sum_minus, Sum_plus, sum_unit_vector, !Sum_scal. fold D. change (Σ i, p i * v i) with E. ring.
Qed.
(* It is the gradient: along z + t v the slope of S_c is Σ v_i s_i. *)
Theorem centred_discriminant_slope (z v : V -> R) k t :
  is_derive (fun u => centred_discriminant (softmax (step z u v)) k) t
    (Σ i, v i * centred_gradient (softmax (step z t v)) k i).
Proof.
  rewrite <- centred_slope_is by apply softmax_total.
  apply (centred_discriminant_derive (fun u => step z u v) v t), step_velocity.
Qed.
Lemma centred_gradient_total p k : total p = 1 -> Σ i, centred_gradient p k i = 0.
Proof.
  intros T. unfold centred_gradient. set (P := Σ i, p i ^ 2).
  rewrite (Sum_ext _ (fun i => unit_vector k i * (discriminant p k + p k)
    + p i * (2 * baseline p + P - discriminant p k - p k) - p i ^ 2
    - (p k - P) * discriminant p i - 2 * (p i * discriminant p i))) by (intros; ring).
  rewrite !Sum_minus, Sum_plus, !Sum_scal, sum_unit_vector, Sum_scal_r, T, discriminants_sum_to_zero by easy.
  fold P. change (Σ i, p i * discriminant p i) with (baseline p). ring.
Qed.

(* Where S_c = 0, raising z_k raises S_c more than raising any other logit. *)
Theorem sampled_logit_leads p k j : policy p -> j <> k -> centred_discriminant p k = 0 ->
  centred_gradient p k j < centred_gradient p k k.
Proof.
  intros Pol J Z. assert (A : exists i, i <> k) by now exists j.
  assert (G := gap_positive p k Pol A Z j J). assert (R := remainder_pos p k Pol A).
  assert (E := on_the_boundary p k Pol A Z).
  enough (centred_gradient p k k - centred_gradient p k j
    = (1 - p k) ^ 2 * gap (p k) (r p k j) (M_r p k) (H_r p k + ln (r p k j)) (p k * tilt p k)).
  { assert (0 < (1 - p k) ^ 2) by nra. nra. }
  unfold centred_discriminant in Z.
  unfold centred_gradient. rewrite unit_vector_same, unit_vector_other, (squares_split p k Pol A) by easy.
  replace (baseline p) with (discriminant p k) by lra. rewrite (S_k_split p k Pol A), (S_split p k Pol A j).
  rewrite (p_is_r p k Pol A j). unfold gap. ring.
Qed.

(* So S_c grows along every direction in which each logit but k moves by less than the constant m, their mean. *)
Lemma slope_is_positive p k v m : policy p -> (exists j, j <> k) -> centred_discriminant p k = 0 ->
  (Σ i, (v i - m)) = 0 -> (forall j, j <> k -> v j < m) -> 0 < centred_slope p k v.
Proof.
  intros Pol [j0 J0] Z S L. rewrite centred_slope_is by apply Pol.
  assert (T := centred_gradient_total p k (proj2 Pol)). set (s := centred_gradient p k) in *.
  replace (Σ i, v i * s i) with (Sum (fun j => (m - v j) * (s k - s j)) (others k)).
  - apply Sum_pos; [intros N; apply others_spec in J0; now rewrite N in J0|].
    intros j J. apply others_spec in J. assert (G := sampled_logit_leads p k j Pol J Z). fold s in G.
    assert (v j < m) by auto. apply Rmult_lt_0_compat; lra.
  - rewrite (Sum_ext _ (fun j => (v j - m) * s j - (v j - m) * s k)) by (intros; ring).
    rewrite Sum_minus, Sum_scal_r. rewrite (sum_split _ k) in S.
    assert (E := sum_split (fun j => (v j - m) * s j) k). cbv beta in E.
    rewrite (Sum_ext _ (fun i => v i * s i - m * s i) (tokens V)), Sum_minus, Sum_scal, T in E by (intros; ring).
    replace (Sum (fun j => v j - m) (others k)) with (- (v k - m)) by lra. lra.
Qed.
End Gradient.

(* A step of any size on token k, from logits z: z + α (e_k − λ π). π is any policy: the present one for a GRPO step,
   an earlier one for a stale step. *)
Section Step.
Context {V : vocabulary}.
Variables (z pi : V -> R) (k : V) (lam : R).
Hypothesis another_token : exists j, j <> k.
Hypothesis pi_policy : policy pi.
Hypothesis lam_range : 0 <= lam <= 1.
Let d := towards k lam pi.
Let q alpha := softmax (step z alpha d).
Let S_c alpha := centred_discriminant (q alpha) k.
Let Phi alpha := centred_slope (q alpha) k d.

Lemma S_c_slope t : is_derive S_c t (Phi t).
Proof. apply (centred_discriminant_derive (fun t => step z t d) d t), step_velocity. Qed.
Lemma mean_logit : exists m, (Σ i, (d i - m)) = 0 /\ forall j, j <> k -> d j < m.
Proof.
  set (n := Sum (fun _ : V => 1) (tokens V)).
  assert (N : 0 < n) by (apply Sum_pos; [apply tokens_nonempty|intros; lra]).
  assert (E : total d = 1 - lam).
  { unfold d, towards. rewrite Sum_minus, Sum_scal, (proj2 pi_policy).
    rewrite (Sum_ext _ (fun i => unit_vector k i * 1)) by (intros; ring). rewrite sum_unit_vector. ring. }
  exists ((1 - lam) / n). split.
  - rewrite Sum_minus, E. rewrite (Sum_ext (fun _ => (1 - lam) / n) (fun _ => (1 - lam) / n * 1)) by (intros; ring).
    rewrite Sum_scal. fold n. field. lra.
  - intros j J. unfold d, towards. rewrite unit_vector_other by easy. assert (P := proj1 pi_policy j).
    destruct (Req_dec lam 0) as [->|D].
    + assert (0 < (1 - 0) / n) by (apply Rdiv_lt_0_compat; lra). lra.
    + assert (0 < lam * pi j) by (apply Rmult_lt_0_compat; lra).
      assert (0 <= (1 - lam) / n) by (apply Rmult_le_pos; [lra|left; now apply Rinv_0_lt_compat]). lra.
Qed.
Lemma Phi_at_the_boundary t : S_c t = 0 -> 0 < Phi t.
Proof.
  intros Z. destruct mean_logit as [m [S L]]. apply slope_is_positive with m; auto. apply softmax_policy.
Qed.
Lemma Phi_continuous_here t : continuous Phi t.
Proof.
  apply (continuous_ext (fun u => Σ i, d i * centred_gradient (q u) k i)).
  { intros u. symmetry. apply centred_slope_is, softmax_total. }
  apply (ex_derive_continuous (fun u => Σ i, d i * centred_gradient (q u) k i)).
  assert (Ep : forall i, ex_derive (fun u => q u i) t).
  { intros i. eexists. apply (softmax_derive (fun u => step z u d) d t), step_velocity. }
  assert (Es : forall i, ex_derive (fun u => discriminant (q u) i) t).
  { intros i. eexists. apply (discriminant_derive (fun u => step z u d) d t), step_velocity. }
  assert (En : ex_derive (fun u => baseline (q u)) t).
  { apply (ex_Sum (fun u i => q u i * discriminant (q u) i)). intros i. now apply (ex_derive_mult (fun u => q u i)). }
  assert (E2 : ex_derive (fun u => Σ j, q u j ^ 2) t).
  { apply (ex_Sum (fun u i => q u i ^ 2)). intros i. now apply (ex_derive_pow (fun u => q u i)). }
  apply (ex_Sum (fun u i => d i * centred_gradient (q u) k i)). intros i.
  apply (ex_derive_scal (fun u => centred_gradient (q u) k i)). unfold centred_gradient.
  set (A u := 2 * baseline (q u) + (Σ j, q u j ^ 2) - discriminant (q u) k - q u k - q u i).
  set (B u := q u k - (Σ j, q u j ^ 2) + 2 * q u i).
  set (C u := discriminant (q u) k + q u k).
  assert (EC : ex_derive C t) by (now apply (ex_derive_plus (fun u => discriminant (q u) k) (fun u => q u k))).
  assert (EA : ex_derive A t).
  { apply (ex_derive_minus (fun u => 2 * baseline (q u) + (Σ j, q u j ^ 2) - discriminant (q u) k - q u k) (fun u => q u i)); [|apply Ep].
    apply (ex_derive_minus (fun u => 2 * baseline (q u) + (Σ j, q u j ^ 2) - discriminant (q u) k) (fun u => q u k)); [|apply Ep].
    apply (ex_derive_minus (fun u => 2 * baseline (q u) + (Σ j, q u j ^ 2)) (fun u => discriminant (q u) k)); [|apply Es].
    apply (ex_derive_plus (fun u => 2 * baseline (q u)) (fun u => Σ j, q u j ^ 2)); [|apply E2].
    exact (ex_derive_scal (fun u => baseline (q u)) 2 t En). }
  assert (EB : ex_derive B t).
  { apply (ex_derive_plus (fun u => q u k - (Σ j, q u j ^ 2)) (fun u => 2 * q u i)).
    - apply (ex_derive_minus (fun u => q u k) (fun u => Σ j, q u j ^ 2)); [apply Ep|apply E2].
    - exact (ex_derive_scal (fun u => q u i) 2 t (Ep i)). }
  apply (ex_derive_minus (fun u => unit_vector k i * C u + q u i * A u) (fun u => B u * discriminant (q u) i)).
  - apply (ex_derive_plus (fun u => unit_vector k i * C u) (fun u => q u i * A u)).
    + exact (ex_derive_scal C (unit_vector k i) t EC).
    + apply (ex_derive_mult (fun u => q u i) A); [apply Ep|exact EA].
  - apply (ex_derive_mult B (fun u => discriminant (q u) i)); [exact EB|apply Es].
Qed.
Lemma S_c_at_0 : S_c 0 = centred_discriminant (softmax z) k.
Proof.
  assert (E : forall i, discriminant (q 0) i = discriminant (softmax z) i) by (intros; apply discriminant_ext, softmax_step_0).
  unfold S_c, centred_discriminant, baseline, mean. rewrite E. f_equal. apply Sum_ext. intros i _.
  rewrite E. unfold q. now rewrite softmax_step_0.
Qed.

(* From S_c >= 0 no step with α >= 0 leads to S_c < 0 ... *)
Theorem fall_half_is_kept alpha : 0 <= alpha -> 0 <= centred_discriminant (softmax z) k ->
  0 <= centred_discriminant (softmax (step z alpha (towards k lam pi))) k.
Proof.
  intros A S. rewrite <- S_c_at_0 in S. apply (barrier S_c (fun _ => 1) Phi (-1) (alpha + 1)) with (s := 0); try lra.
  - intros t _. eapply derive_eq; [apply S_c_slope|ring].
  - intros. lra.
  - intros t _. apply Phi_continuous_here.
  - intros t _. apply Phi_at_the_boundary.
Qed.
(* ... and from S_c <= 0 no step with α <= 0 leads to S_c > 0. *)
Theorem rise_half_is_kept alpha : alpha <= 0 -> centred_discriminant (softmax z) k <= 0 ->
  centred_discriminant (softmax (step z alpha (towards k lam pi))) k <= 0.
Proof.
  intros A S. rewrite <- S_c_at_0 in S. enough (0 <= - S_c (- - alpha)) by (rewrite Ropp_involutive in H; unfold S_c, q, d in H; lra).
  apply (barrier (fun u => - S_c (- u)) (fun _ => 1) (fun u => Phi (- u)) (-1) (- alpha + 1)) with (s := 0); try lra.
  - intros t _. eapply derive_eq; [apply derive_opp, (is_derive_comp S_c Ropp t); [apply S_c_slope|]|].
    + apply (derive_opp (fun u => u) 1). apply (is_derive_id t).
    + unfold scal; simpl; unfold mult; simpl. ring.
  - intros. lra.
  - intros t _. apply (continuous_comp Ropp Phi); [|apply Phi_continuous_here].
    apply (ex_derive_continuous Ropp). exists (- 1). apply (derive_opp (fun u => u) 1 t). apply (is_derive_id t).
  - intros t _ Z. apply Phi_at_the_boundary. lra.
  - rewrite Ropp_0. lra.
Qed.
End Step.
