(* T4, two-valued directions d = 1_K for a set K of tokens with something inside and something outside.

   P = p(K), H_K and H_W the entropies of the policy given that the token is inside and outside K, and
   x = logit P + H_W − H_K. Raising every logit of K by ε leaves both conditional policies alone and moves P to
   Q = σ(logit P + ε), so H(q_ε) = h(Q) + Q H_K + (1 − Q) H_W. *)
From Coq Require Import Reals Lra Psatz List Bool.
From Coquelicot Require Import Coquelicot.
From EntropyTheory Require Import Sums Calculus Policy Discriminant ExactIdentity Mixture.
Open Scope R_scope.

Section Definitions.
Context {V : vocabulary}.
Implicit Types (K : V -> bool) (p : V -> R).

Definition indicator K (i : V) : R := if K i then 1 else 0.
Definition outside K (i : V) : bool := negb (K i).
Definition mass K p : R := mean p (indicator K). (* p(K) *)
Definition conditional K p (i : V) : R := if K i then p i / mass K p else 0. (* p given K *)
Definition size K : R := total (indicator K). (* the number of tokens in K *)
End Definitions.

(* Entropy of a conditional policy. Its zeros contribute nothing: 0 log 0 = 0. *)
Section Conditional.
Context {V : vocabulary}.
Implicit Types (K : V -> bool) (p f : V -> R).

Lemma indicator_outside K (i : V) : indicator (outside K) i = 1 - indicator K i.
Proof. unfold indicator, outside. destruct (K i); simpl; ring. Qed.
Lemma indicator_range K (i : V) : 0 <= indicator K i <= 1.
Proof. unfold indicator. destruct (K i); lra. Qed.
Lemma mass_outside K p : total p = 1 -> mass (outside K) p = 1 - mass K p.
Proof.
  intros T. unfold mass, mean. rewrite (Sum_ext _ (fun i => p i - p i * indicator K i)).
  - rewrite Sum_minus, T. reflexivity.
  - intros. rewrite indicator_outside. ring.
Qed.
Lemma mass_pos K p i : (forall j, 0 < p j) -> K i = true -> 0 < mass K p.
Proof.
  intros P I. apply Rlt_le_trans with (p i * indicator K i).
  - unfold indicator. rewrite I. assert (X := P i). lra.
  - apply (Sum_In (fun j => p j * indicator K j)); [|apply tokens_complete].
    intros j _. assert (X := P j). assert (Y := indicator_range K j). nra.
Qed.
(* Σ_{i∈K} p_i log p_i = P (log P − H_K) *)
Lemma inside_sum K p : (forall i, 0 < p i) -> 0 < mass K p ->
  Σ i, p i * (indicator K i * ln (p i)) = mass K p * (ln (mass K p) - entropy (conditional K p)).
Proof.
  intros P M. unfold entropy, conditional. set (m := mass K p) in *.
  rewrite (Sum_ext (fun i => (if K i then p i / m else 0) * _)
    (fun i => / m * (p i * (indicator K i * ln (p i))) - / m * ln m * (p i * indicator K i))).
  - rewrite Sum_minus, !Sum_scal. fold (mean p (indicator K)). change (mean p (indicator K)) with m. field. lra.
  - intros i _. unfold indicator. destruct (K i); [|ring]. unfold Rdiv.
    rewrite ln_mult, ln_Rinv by (easy || apply P || now apply Rinv_0_lt_compat). ring.
Qed.

(* 0 <= H_K <= log |K| *)
Theorem conditional_entropy_bounds K p i : (forall j, 0 < p j) -> K i = true ->
  0 <= entropy (conditional K p) <= ln (size K).
Proof.
  intros P I. assert (M := mass_pos K p i P I). set (m := mass K p) in *.
  assert (N : 1 <= size K).
  { apply Rle_trans with (indicator K i); [unfold indicator; rewrite I; lra|].
    apply Sum_In; [intros; apply indicator_range|apply tokens_complete]. }
  assert (Total : total (conditional K p) = 1).
  { rewrite (Sum_ext _ (fun j => / m * (p j * indicator K j))).
    - rewrite Sum_scal. change (/ m * m = 1). field. lra.
    - intros j _. unfold conditional, indicator. destruct (K j); fold m; unfold Rdiv; ring. }
  assert (C : forall j, 0 <= conditional K p j).
  { intros j. unfold conditional. destruct (K j); [|lra]. left. apply Rdiv_lt_0_compat; [apply P|easy]. }
  split.
  - unfold entropy. rewrite <- Sum_opp. apply Sum_nonneg. intros j J.
    assert (U : conditional K p j <= 1) by (rewrite <- Total; apply Sum_In; [intros; apply C|easy]).
    destruct (C j) as [Cj|Cj]; [|rewrite <- Cj; lra].
    assert (ln (conditional K p j) <= 0) by (rewrite <- ln_1; destruct U as [U|U]; [left; now apply ln_increasing|rewrite U; lra]). nra.
  - enough (Σ j, conditional K p j * (ln (/ size K) - ln (conditional K p j)) <= 0) as G.
    { rewrite (Sum_ext _ (fun j => conditional K p j * ln (/ size K) - conditional K p j * ln (conditional K p j))) in G by (intros; ring).
      rewrite Sum_minus, Sum_scal_r, Total, ln_Rinv in G by lra. unfold entropy. lra. }
    apply Rle_trans with (Σ j, (/ size K * indicator K j - conditional K p j)).
    + apply Sum_le. intros j _. destruct (K j) eqn:Kj.
      * assert (0 < conditional K p j) by (unfold conditional; rewrite Kj; apply Rdiv_lt_0_compat; [apply P|easy]).
        assert (G := Gibbs_term (conditional K p j) (/ size K) H (Rinv_0_lt_compat _ (Rlt_le_trans _ _ _ Rlt_0_1 N))).
        unfold indicator. rewrite Kj. lra.
      * unfold indicator, conditional. rewrite Kj. lra.
    + rewrite Sum_minus, Sum_scal, Total. change (total (indicator K)) with (size K). rewrite Rinv_l by lra. lra.
Qed.
End Conditional.

Section TwoValued.
Context {V : vocabulary}.
Variables (z : V -> R) (K : V -> bool).
Hypothesis inside_token : exists i, K i = true.
Hypothesis outside_token : exists i, K i = false.

Let p := softmax z.
Let q eps := softmax (step z eps (indicator K)).
Let P := mass K p.
Let Q eps := mass K (q eps).
Let H_K := entropy (conditional K p).
Let H_W := entropy (conditional (outside K) p).
Let x := logit P + H_W - H_K.

Lemma mass_range z' : 0 < mass K (softmax z') < 1.
Proof.
  destruct inside_token as [i I], outside_token as [j J]. split.
  - apply (mass_pos K _ i); [apply softmax_pos|easy].
  - enough (0 < mass (outside K) (softmax z')) by (rewrite mass_outside in * by apply softmax_total; lra).
    apply (mass_pos _ _ j); [apply softmax_pos|unfold outside; now rewrite J].
Qed.

(* The two-part form of entropy: H = h(P) + P H_K + (1 − P) H_W. *)
Theorem chain_rule : entropy p = mixture_entropy H_K H_W P.
Proof.
  assert (R := mass_range z). fold p P in R. assert (T : total p = 1) by apply softmax_total.
  assert (A := inside_sum K p (softmax_pos z) (proj1 R)).
  assert (O : 0 < mass (outside K) p) by (rewrite mass_outside by easy; fold P; lra).
  assert (B := inside_sum (outside K) p (softmax_pos z) O). rewrite mass_outside in B by easy. fold P in A, B. fold H_K in A. fold H_W in B.
  unfold entropy. rewrite (Sum_ext _ (fun i => p i * (indicator K i * ln (p i)) + p i * (indicator (outside K) i * ln (p i)))).
  - rewrite Sum_plus, A, B. unfold mixture_entropy, binary_entropy. ring.
  - intros i _. rewrite indicator_outside. ring.
Qed.

(* Σ_{i∈K} S_i = P (1 − P) x *)
Theorem discriminants_of_a_set : Σ i, indicator K i * discriminant p i = P * (1 - P) * x.
Proof.
  assert (R := mass_range z). fold p P in R. assert (T : total p = 1) by apply softmax_total.
  assert (A := inside_sum K p (softmax_pos z) (proj1 R)). fold P H_K in A.
  rewrite discriminant_along by easy. unfold covariance. fold (mass K p) P.
  assert (E := chain_rule). unfold entropy in E.
  assert (M : mean p (fun i => ln (p i)) = - mixture_entropy H_K H_W P) by (unfold mean; lra). rewrite M.
  unfold mean. rewrite A. unfold x, mixture_entropy, binary_entropy, logit. ring.
Qed.

(* q_ε: the weights e^ε P and 1 − P, normalised. *)
Let D eps := 1 + P * (exp eps - 1).
Lemma D_pos eps : 0 < D eps.
Proof. assert (R := mass_range z). fold p P in R. assert (E := exp_pos eps). unfold D. assert (0 < P * exp eps) by (apply Rmult_lt_0_compat; lra). lra. Qed.
Lemma q_is eps i : q eps i = p i * (if K i then exp eps else 1) / D eps.
Proof.
  unfold q. rewrite softmax_step. fold p.
  assert (E : forall j, p j * exp (eps * indicator K j) = p j * (if K j then exp eps else 1)).
  { intros j. unfold indicator. destruct (K j); [now rewrite Rmult_1_r|now rewrite Rmult_0_r, exp_0]. }
  rewrite E. f_equal. rewrite (Sum_ext _ (fun j => p j + (exp eps - 1) * (p j * indicator K j))).
  - rewrite Sum_plus, Sum_scal. unfold p at 1. rewrite softmax_total. unfold D, P, mass, mean. ring.
  - intros j _. rewrite E. unfold indicator. destruct (K j); ring.
Qed.
Lemma Q_is eps : Q eps = P * exp eps / D eps.
Proof.
  unfold Q, mass, mean. rewrite (Sum_ext _ (fun i => exp eps / D eps * (p i * indicator K i))).
  - rewrite Sum_scal. unfold P, mass, mean. unfold Rdiv. ring.
  - intros i _. rewrite q_is. unfold indicator, Rdiv. destruct (K i); ring.
Qed.
Theorem pass_rate eps : Q eps = sigmoid (logit P + eps).
Proof. rewrite Q_is, sigmoid_shifted by apply mass_range. reflexivity. Qed.
(* Both conditional policies stay. *)
Lemma conditional_inside eps i : conditional K (q eps) i = conditional K p i.
Proof.
  unfold conditional. fold (Q eps) P. destruct (K i) eqn:I; [|easy]. rewrite Q_is, q_is, I.
  assert (D0 := D_pos eps). assert (E := exp_pos eps). assert (R := mass_range z). fold p P in R. field. lra.
Qed.
Lemma conditional_outside eps i : conditional (outside K) (q eps) i = conditional (outside K) p i.
Proof.
  unfold conditional. rewrite !mass_outside by apply softmax_total. fold (Q eps) P. unfold outside. destruct (K i) eqn:I; simpl; [easy|].
  rewrite Q_is, q_is, I. assert (D0 := D_pos eps). assert (R := mass_range z). fold p P in R. unfold D in *. field. split; lra.
Qed.
End TwoValued.

Section Entropy.
Context {V : vocabulary}.
Variables (z : V -> R) (K : V -> bool).
Hypothesis inside_token : exists i, K i = true.
Hypothesis outside_token : exists i, K i = false.

Let p := softmax z.
Let q eps := softmax (step z eps (indicator K)).
Let P := mass K p.
Let Q eps := mass K (q eps).
Let H_K := entropy (conditional K p).
Let H_W := entropy (conditional (outside K) p).
Let x := logit P + H_W - H_K.

(* H(q_ε) = h(Q) + Q H_K + (1 − Q) H_W, the part entropies those of p. *)
Theorem entropy_in_the_pass_rate eps : entropy (q eps) = mixture_entropy H_K H_W (Q eps).
Proof.
  unfold q, Q. rewrite (chain_rule _ K inside_token outside_token). f_equal; apply entropy_ext; intros.
  - now apply conditional_inside.
  - now apply conditional_outside.
Qed.
Lemma entropy_is_F eps : entropy (q eps) = F H_K H_W (logit P + eps).
Proof. rewrite entropy_in_the_pass_rate. unfold Q, q. rewrite (pass_rate z K inside_token outside_token). reflexivity. Qed.
Lemma entropy_p_is_F : entropy p = F H_K H_W (logit P).
Proof.
  unfold F, P. rewrite sigmoid_logit by (apply mass_range; easy). now apply (chain_rule z K).
Qed.

(* H peaks exactly at ε = −x, with value log(e^{H_K} + e^{H_W}), and is strictly monotone on both sides. *)
Theorem peak : entropy (q (- x)) = ln (exp H_K + exp H_W).
Proof. rewrite entropy_is_F, <- F_peak_value. f_equal. unfold x. ring. Qed.
Theorem below_the_peak eps : eps <> - x -> entropy (q eps) < ln (exp H_K + exp H_W).
Proof. intros N. rewrite entropy_is_F, <- F_peak_value. apply F_below_peak. unfold x in N. lra. Qed.
Theorem rises_up_to_the_peak eps eps' : eps < eps' -> eps' <= - x -> entropy (q eps) < entropy (q eps').
Proof. intros L U. rewrite !entropy_is_F. unfold x in U. apply F_increasing; lra. Qed.
Theorem falls_beyond_the_peak eps eps' : eps < eps' -> - x <= eps -> entropy (q eps') < entropy (q eps).
Proof. intros L U. rewrite !entropy_is_F. unfold x in U. apply F_decreasing; lra. Qed.

(* The exact change: ΔH = −(Q − P) x − KL. *)
Theorem exact_change eps : entropy (q eps) - entropy p = - (Q eps - P) * x - KL (q eps) p.
Proof.
  assert (R := mass_range K inside_token outside_token z). fold p P in R.
  assert (T : total p = 1) by apply softmax_total.
  assert (D0 := D_pos z K inside_token outside_token eps). cbv beta zeta in D0. fold p P in D0.
  rewrite exact_identity. f_equal. rewrite Ropp_mult_distr_l_reverse. f_equal.
  set (u := exp eps - 1) in *. set (L i := ln (p i)).
  assert (A : mean p (fun i => indicator K i * L i) = P * (ln P - H_K)) by (apply inside_sum; [apply softmax_pos|easy]).
  assert (M : mean p L = P * (ln P - H_K) + (1 - P) * (ln (1 - P) - H_W)).
  { assert (C := chain_rule z K inside_token outside_token). cbv beta zeta in C. fold p P H_K H_W in C. unfold entropy in C.
    unfold mean, L. rewrite <- (Ropp_involutive (Σ i, p i * ln (p i))), C. unfold mixture_entropy, binary_entropy. ring. }
  assert (E : forall i, (q eps i - p i) * ln (p i) = u / (1 + P * u) * (p i * (indicator K i * L i)) - P * u / (1 + P * u) * (p i * L i)).
  { intros i. unfold q. rewrite (q_is z K). cbv beta zeta. fold p P. fold u. unfold L, indicator. destruct (K i); unfold u; field; fold u; lra. }
  rewrite (Sum_ext _ _ _ (fun i _ => E i)), Sum_minus, !Sum_scal. fold (mean p (fun i => indicator K i * L i)) (mean p L).
  rewrite A, M. unfold Q, q. rewrite (Q_is z K). cbv beta zeta. fold p P. fold u.
  replace (exp eps) with (1 + u) by (unfold u; ring). unfold x, logit. field. lra.
Qed.
Theorem pass_rate_moves_with_eps eps : (0 < eps -> P < Q eps) /\ (eps < 0 -> Q eps < P).
Proof.
  unfold Q, q. rewrite (pass_rate z K inside_token outside_token). cbv beta zeta. fold p P.
  assert (R := mass_range K inside_token outside_token z). fold p P in R. rewrite <- (sigmoid_logit P) at 1 4 by easy.
  split; intros L; apply sigmoid_increasing; lra.
Qed.
Theorem KL_of_a_step eps : KL (q eps) p = eps * Q eps - ln (1 + P * (exp eps - 1)).
Proof.
  assert (D0 := D_pos z K inside_token outside_token eps). cbv beta zeta in D0. fold p P in D0. set (D := 1 + P * (exp eps - 1)) in *.
  unfold KL, Q, mass, mean.
  rewrite (Sum_ext _ (fun i => eps * (q eps i * indicator K i) - q eps i * ln D)).
  - rewrite Sum_minus, Sum_scal, Sum_scal_r. unfold q at 2. rewrite softmax_total. ring.
  - intros i _. assert (X : ln (q eps i) = ln (p i) + eps * indicator K i - ln D).
    { unfold q. rewrite (q_is z K). cbv beta zeta. fold p P D. assert (Pi : 0 < p i) by apply softmax_pos. assert (E := exp_pos eps).
      unfold indicator, Rdiv. destruct (K i).
      - rewrite !ln_mult, ln_exp, ln_Rinv by (easy || now apply Rinv_0_lt_compat || now apply Rmult_lt_0_compat). ring.
      - rewrite Rmult_1_r, ln_mult, ln_Rinv by (easy || now apply Rinv_0_lt_compat). ring. }
    rewrite X. ring.
Qed.
Theorem KL_of_a_step_pos eps : eps <> 0 -> 0 < KL (q eps) p.
Proof.
  intros N. destruct (KL_nonneg (q eps) p (softmax_policy _) (softmax_policy _)) as [|E]; [easy|]. exfalso.
  assert (S := KL_zero (q eps) p (softmax_policy _) (softmax_policy _) (eq_sym E)).
  assert (QP : Q eps = P) by (apply Sum_ext; intros; now rewrite S).
  assert (M := pass_rate_moves_with_eps eps). lra.
Qed.

(* The sign theorem for two-valued directions, at any size. *)
Theorem two_valued_sign_theorem eps : 0 <= eps * x ->
  entropy (q eps) - entropy p <= - KL (q eps) p /\ (eps <> 0 -> - KL (q eps) p < 0).
Proof.
  intros S. split; [|intros N; assert (K0 := KL_of_a_step_pos eps N); lra].
  rewrite exact_change. assert (M := pass_rate_moves_with_eps eps). destruct (Rtotal_order eps 0) as [L|[E|G]].
  - assert (Q eps < P) by (now apply M). assert (x <= 0) by nra. nra.
  - assert (Z : Q eps = P).
    { apply Sum_ext. intros i _. f_equal. apply softmax_ext. intros. unfold step. rewrite E. ring. }
    rewrite Z. lra.
  - assert (P < Q eps) by (now apply M). assert (0 <= x) by nra. nra.
Qed.
End Entropy.
