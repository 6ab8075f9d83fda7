(* B.2 and B.4, one moved logit at any step ε. With H_rest the entropy of the policy given that the token is not k,
   u = e^ε − 1 and D = 1 + p_k u:

       q_k = p_k e^ε / D,  q_i = p_i / D (i ≠ k),
       H(q) − H(p) = −(u / D) S_k − KL(q ‖ p),  KL(q ‖ p) = ε q_k − log D >= 0,
       H(q) − H(p) = h(q_k) − h(p_k) − (q_k − p_k) H_rest,  H_rest = (H − h(p_k)) / (1 − p_k),
       S_k = p_k (1 − p_k) (logit p_k + H_rest),  0 <= H_rest <= log(V − 1).

   Everything is T4 with K = {k}, for which H_K = 0. *)
From Coq Require Import Reals Lra Psatz List.
From Coquelicot Require Import Coquelicot.
From EntropyTheory Require Import Sums Calculus Policy Discriminant Mixture TwoValued.
Open Scope R_scope.

Definition is_token {V : vocabulary} (k i : V) : bool := if same_token i k then true else false.
(* The entropy given that the token is not k. *)
Definition entropy_of_the_rest {V : vocabulary} (p : V -> R) (k : V) : R := entropy (conditional (outside (is_token k)) p).

Section SingleLogit.
Context {V : vocabulary}.
Variables (z : V -> R) (k : V).
Hypothesis another_token : exists j, j <> k.

Let p := softmax z.
Let q eps := softmax (step z eps (unit_vector k)).
Let H_rest := entropy_of_the_rest p k.
Let D eps := 1 + p k * (exp eps - 1).

Lemma k_inside : exists i, is_token k i = true.
Proof. exists k. unfold is_token. now destruct (same_token k k). Qed.
Lemma k_outside : exists i, is_token k i = false.
Proof. assert (J := another_token). destruct J as [j J]. exists j. unfold is_token. now destruct (same_token j k). Qed.
Lemma indicator_is_token i : indicator (is_token k) i = unit_vector k i.
Proof. unfold indicator, is_token, unit_vector. now destruct (same_token i k). Qed.
Lemma mass_is_token f : mass (is_token k) f = f k.
Proof. unfold mass. rewrite <- (mean_unit_vector f k). apply Sum_ext. intros. now rewrite indicator_is_token. Qed.
Lemma entropy_of_one_token : entropy (conditional (is_token k) p) = 0.
Proof.
  unfold entropy. rewrite Sum_zero; [ring|]. intros i _. unfold conditional. rewrite mass_is_token. unfold is_token.
  destruct (same_token i k) as [->|]; [|ring]. assert (P := softmax_pos z k). fold p in P. unfold Rdiv. rewrite Rinv_r, ln_1 by lra. ring.
Qed.
Lemma q_is_two_valued eps i : q eps i = softmax (step z eps (indicator (is_token k))) i.
Proof. apply softmax_ext. intros j. unfold step. now rewrite indicator_is_token. Qed.
Lemma p_k_range : 0 < p k < 1.
Proof.
  assert (R := mass_range (is_token k) k_inside k_outside z). now rewrite mass_is_token in R.
Qed.
Lemma q_k_range eps : 0 < q eps k < 1.
Proof.
  assert (R := mass_range (is_token k) k_inside k_outside (step z eps (indicator (is_token k)))).
  now rewrite mass_is_token, <- q_is_two_valued in R.
Qed.
Lemma D_positive eps : 0 < D eps.
Proof. assert (R := D_pos z (is_token k) k_inside k_outside eps). cbv beta zeta in R. now rewrite mass_is_token in R. Qed.

Theorem probability_of_the_token eps : q eps k = p k * exp eps / D eps /\ q eps k = sigmoid (logit (p k) + eps).
Proof.
  assert (A := Q_is z (is_token k) eps). assert (B := pass_rate z (is_token k) k_inside k_outside eps).
  cbv beta zeta in A, B. rewrite !mass_is_token, <- q_is_two_valued in A, B. now split.
Qed.
Theorem probability_of_another_token eps i : i <> k -> q eps i = p i / D eps.
Proof.
  intros N. rewrite q_is_two_valued, q_is. rewrite mass_is_token. unfold is_token. destruct (same_token i k); [easy|].
  fold p. unfold D, Rdiv. ring.
Qed.

(* What surrounds the token (B.2). *)
Theorem entropy_in_two_parts : entropy p = binary_entropy (p k) + (1 - p k) * H_rest.
Proof.
  assert (C := chain_rule z (is_token k) k_inside k_outside). cbv beta zeta in C. fold p in C.
  rewrite entropy_of_one_token, mass_is_token in C. rewrite C. unfold mixture_entropy, H_rest, entropy_of_the_rest. ring.
Qed.
Theorem entropy_of_the_rest_is : H_rest = (entropy p - binary_entropy (p k)) / (1 - p k).
Proof. assert (R := p_k_range). rewrite entropy_in_two_parts. field. lra. Qed.
Theorem what_surrounds_the_token : discriminant p k = p k * (1 - p k) * (logit (p k) + H_rest).
Proof.
  assert (S := discriminants_of_a_set z (is_token k) k_inside k_outside). cbv beta zeta in S. fold p in S.
  rewrite entropy_of_one_token, !mass_is_token in S. rewrite <- (sum_unit_vector (discriminant p) k).
  rewrite (Sum_ext _ (fun i => indicator (is_token k) i * discriminant p i)) by (intros; now rewrite indicator_is_token).
  rewrite S. unfold H_rest, entropy_of_the_rest. ring.
Qed.
Theorem entropy_of_the_rest_bounds : 0 <= H_rest <= ln (INR (length (tokens V)) - 1).
Proof.
  destruct k_outside as [j J]. assert (B := conditional_entropy_bounds (outside (is_token k)) p j (softmax_pos z)).
  replace (INR (length (tokens V)) - 1) with (size (outside (is_token k))); [apply B; unfold outside; now rewrite J|].
  unfold size. rewrite (Sum_ext _ (fun i => 1 - unit_vector k i * 1)).
  - rewrite Sum_minus, sum_unit_vector. f_equal. clear. induction (tokens V) as [|x l IH]; [easy|].
    cbn [Sum length]. rewrite S_INR, IH. ring.
  - intros i _. rewrite indicator_outside, indicator_is_token. ring.
Qed.

(* The exact law (B.4). *)
Theorem exact_single_logit_law eps :
  entropy (q eps) - entropy p = - ((exp eps - 1) / D eps) * discriminant p k - KL (q eps) p.
Proof.
  assert (C := exact_change z (is_token k) k_inside k_outside eps). cbv beta zeta in C. fold p in C.
  rewrite entropy_of_one_token, !mass_is_token, <- (q_is_two_valued eps k) in C.
  rewrite <- (entropy_ext _ _ (q_is_two_valued eps)), <- (KL_ext _ _ p p (q_is_two_valued eps)) in C by easy.
  rewrite C, what_surrounds_the_token, (proj1 (probability_of_the_token eps)). fold H_rest.
  change (entropy (conditional (outside (is_token k)) p)) with H_rest. assert (P := D_positive eps). unfold D in *. field. lra.
Qed.
Theorem divergence_of_one_logit eps : KL (q eps) p = eps * q eps k - ln (D eps) /\ (eps <> 0 -> 0 < KL (q eps) p).
Proof.
  assert (A := KL_of_a_step z (is_token k) k_inside k_outside eps). assert (B := KL_of_a_step_pos z (is_token k) k_inside k_outside eps).
  cbv beta zeta in A, B. rewrite !mass_is_token, <- (q_is_two_valued eps k) in A.
  now rewrite <- (KL_ext _ _ (softmax z) (softmax z) (q_is_two_valued eps)) in A, B by easy.
Qed.
Theorem change_in_two_parts eps :
  entropy (q eps) - entropy p = binary_entropy (q eps k) - binary_entropy (p k) - (q eps k - p k) * H_rest.
Proof.
  assert (C := entropy_in_the_pass_rate z (is_token k) k_inside k_outside eps). cbv beta zeta in C. fold p in C.
  rewrite entropy_of_one_token, mass_is_token, <- (q_is_two_valued eps k), <- (entropy_ext _ _ (q_is_two_valued eps)) in C.
  rewrite C, entropy_in_two_parts. unfold mixture_entropy, H_rest, entropy_of_the_rest. ring.
Qed.
Lemma entropy_is_F_of_one_logit eps : entropy (q eps) = F 0 H_rest (logit (p k) + eps).
Proof.
  assert (C := entropy_is_F z (is_token k) k_inside k_outside eps). cbv beta zeta in C. fold p in C.
  now rewrite entropy_of_one_token, mass_is_token, <- (entropy_ext _ _ (q_is_two_valued eps)) in C.
Qed.
Lemma entropy_p_is_F_of_one_logit : entropy p = F 0 H_rest (logit (p k)).
Proof.
  rewrite <- (Rplus_0_r (logit (p k))), <- entropy_is_F_of_one_logit. apply entropy_ext. intros.
  apply softmax_ext. intros. unfold step. ring.
Qed.
End SingleLogit.
