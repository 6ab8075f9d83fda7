(* T2, how far a predicted rise reaches for α < 0. Let M = max_{i≠k} p_i with multiplicity m, 0 < λ <= 1, S_d > 0.

   As α → −∞ the policy becomes uniform on the m tokens of probability M, and H(q_α) → log m. So entropy rises exactly
   on one interval (α₀, 0) if log m < H(p), and at every α < 0 otherwise. *)
From Coq Require Import Reals Lra Psatz List.
From Coquelicot Require Import Coquelicot.
From EntropyTheory Require Import Sums Calculus Policy Discriminant Gradient StepBound SignTheorem Concavity.
Open Scope R_scope.

Lemma is_lim_Sum {A : Type} (f : R -> A -> R) (c : A -> R) (l : list A) x :
  (forall i, In i l -> is_lim (fun t => f t i) x (c i)) -> is_lim (fun t => Sum (f t) l) x (Sum c l).
Proof.
  induction l as [|y r IH]; simpl; intros L; [apply is_lim_const|].
  apply (is_lim_plus' (fun t => f t y) (fun t => Sum (f t) r)); [apply L; now left|apply IH; intros; apply L; now right].
Qed.
Lemma lim_linear s : 0 < s -> is_lim (fun t => t * s) m_infty m_infty.
Proof.
  intros S. apply is_lim_spec. intros b. exists (b / s). intros t L. apply (Rmult_lt_compat_r s) in L; [|easy].
  unfold Rdiv in L. rewrite Rmult_assoc, Rinv_l, Rmult_1_r in L by lra. easy.
Qed.
Lemma lim_exp s : 0 < s -> is_lim (fun t => exp (t * s)) m_infty 0.
Proof.
  intros S. apply (is_lim_comp exp (fun t => t * s) m_infty 0 m_infty); [apply is_lim_exp_m|now apply lim_linear|].
  exists 0. intros. discriminate.
Qed.
Lemma lim_mult_exp s : 0 < s -> is_lim (fun t => t * s * exp (t * s)) m_infty 0.
Proof.
  intros S. apply (is_lim_comp (fun y => y * exp y) (fun t => t * s) m_infty 0 m_infty); [apply is_lim_mul_exp_m|now apply lim_linear|].
  exists 0. intros. discriminate.
Qed.

Section NegativeSteps.
Context {V : vocabulary}.
Variables (z : V -> R) (k : V) (lam M : R).
Hypothesis lam_range : 0 < lam <= 1.
Let p := softmax z.
Hypothesis M_bound : forall i, i <> k -> p i <= M.
Hypothesis M_attained : exists j, j <> k /\ p j = M.

Let d := towards k lam p. (* e_k − λ p *)
Let q t := softmax (step z t d).
Let S_d := discriminant p k - lam * baseline p.
(* The number of tokens other than k with probability M. *)
Definition multiplicity : R := Σ i, if same_token i k then 0 else if Req_EM_T (p i) M then 1 else 0.

Lemma lam_0_1 : 0 <= lam <= 1.
Proof. lra. Qed.
Lemma another : exists j, j <> k.
Proof. destruct M_attained as [j [J _]]. now exists j. Qed.
Lemma M_pos : 0 < M.
Proof. destruct M_attained as [j [_ <-]]. apply softmax_pos. Qed.
Lemma multiplicity_ge_1 : 1 <= multiplicity.
Proof.
  destruct M_attained as [j [J E]]. unfold multiplicity.
  apply Rle_trans with (if same_token j k then 0 else if Req_EM_T (p j) M then 1 else 0).
  - destruct (same_token j k); [easy|]. destruct (Req_EM_T (p j) M); [lra|easy].
  - apply (Sum_In (fun i => if same_token i k then 0 else if Req_EM_T (p i) M then 1 else 0)); [|apply tokens_complete].
    intros i _. destruct (same_token i k); [lra|]. destruct (Req_EM_T (p i) M); lra.
Qed.

(* The same ray with s = d + λ M >= 0, zero exactly on the tokens of probability M. *)
Let s i := d i + lam * M.
Let weight t i := p i * exp (t * s i).
Let W t := Σ i, weight t i.
Definition top (i : V) : R := if same_token i k then 0 else if Req_EM_T (p i) M then M else 0.

Lemma q_shifted t i : q t i = weight t i / W t.
Proof.
  unfold q. rewrite softmax_step. fold p. unfold weight, W, s.
  assert (E : forall j, p j * exp (t * (d j + lam * M)) = exp (t * (lam * M)) * (p j * exp (t * d j))).
  { intros j. rewrite Rmult_plus_distr_l, exp_plus. ring. }
  rewrite E, (Sum_ext (fun j => p j * exp (t * (d j + lam * M))) (fun j => exp (t * (lam * M)) * (p j * exp (t * d j)))) by (intros; apply E). rewrite Sum_scal.
  assert (X := exp_pos (t * (lam * M))). field. split; [|lra]. apply Rgt_not_eq. apply Sum_pos; [apply tokens_nonempty|].
  intros. apply Rmult_lt_0_compat; [apply softmax_pos|apply exp_pos].
Qed.
Lemma weight_pos t i : 0 < weight t i.
Proof. apply Rmult_lt_0_compat; [apply softmax_pos|apply exp_pos]. Qed.
Lemma W_pos t : 0 < W t.
Proof. apply Sum_pos; [apply tokens_nonempty|]. intros. apply weight_pos. Qed.
Lemma entropy_shifted t : entropy (q t) = ln (W t) - (Σ i, weight t i * (ln (p i) + t * s i)) / W t.
Proof.
  assert (P := W_pos t). unfold entropy. rewrite (Sum_ext _ (fun i => / W t * (weight t i * (ln (p i) + t * s i)) - / W t * ln (W t) * weight t i)).
  - rewrite Sum_minus, !Sum_scal. fold (W t). change (total (weight t)) with (W t). field. lra.
  - intros i _. rewrite q_shifted. unfold Rdiv. assert (Pi := weight_pos t i).
    rewrite ln_mult, ln_Rinv by (easy || now apply Rinv_0_lt_compat). unfold weight at 2.
    rewrite ln_mult, ln_exp by (apply softmax_pos || apply exp_pos). ring.
Qed.
Lemma s_cases i : (0 < s i /\ top i = 0) \/ (s i = 0 /\ p i = M /\ top i = M).
Proof.
  unfold s, d, towards, unit_vector, top. destruct (same_token i k) as [->|N].
  - left. split; [|easy]. assert (P := policy_le_1 p k (softmax_policy z)). assert (Pk : 0 < p k) by apply softmax_pos.
    assert (Mp := M_pos). assert (0 < lam * M) by (apply Rmult_lt_0_compat; lra). nra.
  - assert (B := M_bound i N). destruct (Req_EM_T (p i) M) as [E|E].
    + right. rewrite E. split; [ring|easy].
    + left. split; [|easy]. assert (p i < M) by lra. assert (0 < lam * (M - p i)) by (apply Rmult_lt_0_compat; lra). lra.
Qed.
Lemma weight_limit i : is_lim (fun t => weight t i) m_infty (top i).
Proof.
  unfold weight. destruct (s_cases i) as [[S ->]|[S [E ->]]].
  - replace (Finite 0) with (Rbar_mult (p i) 0) by (simpl; f_equal; ring). apply is_lim_scal_l. now apply lim_exp.
  - apply (is_lim_ext (fun _ => M)); [|apply is_lim_const]. intros t. rewrite S, Rmult_0_r, exp_0, E. ring.
Qed.
Lemma weighted_log_limit i : is_lim (fun t => weight t i * (ln (p i) + t * s i)) m_infty (top i * ln M).
Proof.
  unfold weight. destruct (s_cases i) as [[S ->]|[S [E ->]]].
  - replace (0 * ln M) with (p i * ln (p i) * 0 + p i * 0) by ring.
    apply (is_lim_ext (fun t => p i * ln (p i) * exp (t * s i) + p i * (t * s i * exp (t * s i)))); [intros; ring|].
    apply (is_lim_plus' (fun t => p i * ln (p i) * exp (t * s i)) (fun t => p i * (t * s i * exp (t * s i)))).
    + apply (is_lim_scal_l (fun t => exp (t * s i)) (p i * ln (p i)) m_infty 0). now apply lim_exp.
    + apply (is_lim_scal_l (fun t => t * s i * exp (t * s i)) (p i) m_infty 0). now apply lim_mult_exp.
  - apply (is_lim_ext (fun _ => M * ln M)); [|apply is_lim_const]. intros t. rewrite S, Rmult_0_r, exp_0, E. ring.
Qed.
Lemma top_total : total top = multiplicity * M.
Proof.
  unfold top, multiplicity. rewrite <- Sum_scal_r. apply Sum_ext. intros i _. destruct (same_token i k); [ring|].
  destruct (Req_EM_T (p i) M); ring.
Qed.
(* H(q_α) → log m as α → −∞. *)
Theorem limit_of_negative_steps : is_lim (fun alpha => entropy (q alpha)) m_infty (ln multiplicity).
Proof.
  assert (Mp := M_pos). assert (m := multiplicity_ge_1). assert (Pos : 0 < multiplicity * M) by (apply Rmult_lt_0_compat; lra).
  apply (is_lim_ext (fun t => ln (W t) - (Σ i, weight t i * (ln (p i) + t * s i)) / W t)); [intros; symmetry; apply entropy_shifted|].
  assert (LW : is_lim W m_infty (multiplicity * M)).
  { rewrite <- top_total. apply (is_lim_Sum weight). intros. apply weight_limit. }
  replace (ln multiplicity) with (ln (multiplicity * M) - multiplicity * M * ln M / (multiplicity * M)).
  - apply (is_lim_minus' (fun t => ln (W t))).
    + apply (is_lim_comp_continuous W ln m_infty (multiplicity * M) LW).
      apply (ex_derive_continuous ln). eexists. now apply is_derive_ln.
    + apply (is_lim_mult (fun t => Σ i, weight t i * (ln (p i) + t * s i)) (fun t => / W t) m_infty
        (multiplicity * M * ln M) (/ (multiplicity * M))); [| |easy].
      * rewrite <- top_total, <- Sum_scal_r. apply (is_lim_Sum (fun t i => weight t i * (ln (p i) + t * s i))).
        intros. apply weighted_log_limit.
      * apply (is_lim_inv W m_infty (multiplicity * M) LW). intros E. injection E. lra.
  - rewrite ln_mult by lra. field. lra.
Qed.

(* Whatever H(q_α) comes down to at some α < 0, it falls strictly below it afterwards, so its limit is lower still. *)
Let H t := entropy (q t).
Lemma falls_after a b c : c < b < a -> a <= 0 -> H b <= H a -> H c < H b.
Proof.
  intros O A. apply (falls_for_good_backward z k lam lam_0_1 another a b c O). intros i I.
  apply (concave_up_to_1 z k lam lam_0_1 another); [lra|easy].
Qed.
Lemma H_0 : H 0 = entropy p.
Proof. apply entropy_ext. intros. apply softmax_step_0. Qed.
Lemma limit_below a b : b < a -> a <= 0 -> H b <= H a -> ln multiplicity < H a.
Proof.
  intros B A F. assert (F1 := falls_after a b (b - 1) ltac:(lra) A F).
  assert (Le : Rbar_le (ln multiplicity) (H (b - 1))); [|simpl in Le; lra].
  apply (is_lim_le_loc H (fun _ => H (b - 1)) m_infty); [|apply limit_of_negative_steps|apply is_lim_const].
  exists (b - 1). intros c C. left. apply (falls_after b (b - 1) c); lra.
Qed.
(* No flip. *)
Theorem rises_at_every_negative_step alpha : entropy p <= ln multiplicity -> alpha < 0 -> entropy p < entropy (q alpha).
Proof.
  intros L A. destruct (Rlt_le_dec (entropy p) (entropy (q alpha))) as [|F]; [easy|exfalso]. rewrite <- H_0 in F.
  assert (X := limit_below 0 alpha A (Rle_refl 0) F). rewrite H_0 in X. lra.
Qed.
(* One flip. *)
Lemma H_continuous : Ranalysis1.continuity H.
Proof.
  intros t. apply continuity_pt_filterlim. apply (ex_derive_continuous H). eexists.
  apply (entropy_chain_rule (fun t => step z t d) d t). apply step_velocity.
Qed.
Lemma rises_at_first : 0 < S_d -> exists a, a < 0 /\ H 0 < H a.
Proof.
  intros S. assert (D := entropy_gradient z d). unfold d in D at 2. rewrite discriminant_towards in D by apply softmax_total. fold p in D. fold S_d in D.
  apply is_derive_Reals in D. destruct (D (S_d / 2)) as [e E]; [lra|].
  exists (- (e / 2)). assert (Pe := cond_pos e). split; [lra|].
  assert (N : - (e / 2) <> 0) by lra. assert (B := E (- (e / 2)) N). rewrite Rplus_0_l in B. rewrite Rabs_Ropp, Rabs_pos_eq in B by lra.
  specialize (B ltac:(lra)). change (entropy (softmax (step z (- (e / 2)) d))) with (H (- (e / 2))) in B.
  change (entropy (softmax (step z 0 d))) with (H 0) in B. apply Rabs_def2 in B.
  assert (Q : (H (- (e / 2)) - H 0) / - (e / 2) < 0) by lra.
  destruct (Rlt_le_dec (H 0) (H (- (e / 2)))) as [|G]; [easy|exfalso].
  assert (0 <= (H 0 - H (- (e / 2))) / (e / 2)) by (apply Rmult_le_pos; [lra|left; apply Rinv_0_lt_compat; lra]).
  replace ((H (- (e / 2)) - H 0) / - (e / 2)) with ((H 0 - H (- (e / 2))) / (e / 2)) in Q by (field; lra). lra.
Qed.
Theorem one_flip : 0 < S_d -> ln multiplicity < entropy p ->
  exists root, root < 0 /\ forall alpha, alpha < 0 -> (entropy p < entropy (q alpha) <-> root < alpha).
Proof.
  intros S L. rewrite <- H_0 in L. destruct (rises_at_first S) as [a [A R]].
  (* entropy is below H(p) somewhere left of a *)
  assert (Low : exists b, b < a /\ H b < H 0).
  { assert (Lim := limit_of_negative_steps). apply is_lim_spec in Lim.
    assert (De : 0 < H 0 - ln multiplicity) by lra. destruct (Lim (mkposreal _ De)) as [N Near]. simpl in Near.
    exists (Rmin N a - 1). assert (X := Rmin_l N a). assert (Y := Rmin_r N a). split; [lra|].
    specialize (Near (Rmin N a - 1) ltac:(lra)). apply Rabs_def2 in Near. fold (H (Rmin N a - 1)) in Near. lra. }
  destruct Low as [b [B Hb]]. destruct (IVT_gen H b a (H 0) H_continuous) as [r [Rr E]].
  { rewrite Rmin_left, Rmax_right by lra. lra. }
  rewrite Rmin_left, Rmax_right in Rr by lra. assert (r <> a) by (intros X; rewrite X in E; lra).
  exists r. split; [lra|]. intros alpha N. rewrite <- H_0. fold (H alpha). split; intros G.
  - destruct (Rlt_le_dec r alpha) as [|[C|C]]; [easy| |rewrite C in G; lra].
    assert (X := falls_after 0 r alpha). lra.
  - destruct (Rlt_le_dec (H 0) (H alpha)) as [|F]; [easy|]. assert (X := falls_after 0 alpha r). lra.
Qed.
End NegativeSteps.
