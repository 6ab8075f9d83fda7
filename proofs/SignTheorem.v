(* B.8, the one-sided sign theorem, for d = e_k − λ p with 0 <= λ <= 1 (λ = 1: a GRPO step; λ = 0: one logit, B.5).

       α ≠ 0 and α S_d >= 0   imply   H(q_α) − H(p) <= −KL(q_α ‖ p) < 0:

   a predicted fall is a fall at any step size. Entropy falls strictly along the whole ray from 0 to α. Equality holds iff
   p is uniform (λ > 0) or S_k = 0 (λ = 0). *)
From Coq Require Import Reals Lra Psatz List.
From Coquelicot Require Import Coquelicot.
From EntropyTheory Require Import Sums Calculus Policy Discriminant Ray RayEntropy StepBound Baseline.
Open Scope R_scope.

Section Statement.
Context {V : vocabulary}.
Variables (z : V -> R) (k : V) (lam : R).
Hypothesis lam_range : 0 <= lam <= 1.
Hypothesis another_token : exists j, j <> k.

Let p := softmax z.
Let d := towards k lam p. (* e_k − λ p *)
Let q alpha := softmax (step z alpha d).
Let S_d := discriminant p k - lam * baseline p.

#[local] Instance ray : sampled_token p k lam := sampled z k lam lam_range another_token.

Lemma q_moves alpha : alpha <> 0 -> q alpha k <> p k.
Proof.
  intros A. destruct (sampled_token_gains z k lam alpha lam_range another_token) as [U L]. fold p d in U, L. fold (q alpha) in U, L.
  destruct (Rtotal_order alpha 0) as [N|[E|N]]; [|easy|]; [assert (X := L N)|assert (X := U N)]; lra.
Qed.
Lemma first_order_term alpha : 0 <= alpha * S_d -> 0 <= S_d * (q alpha k - p k).
Proof.
  intros A. destruct (sampled_token_gains z k lam alpha lam_range another_token) as [U L]. fold p d in U, L. fold (q alpha) in U, L.
  destruct (Rtotal_order alpha 0) as [N|[E|N]].
  - assert (X := L N). nra.
  - enough (q alpha k = p k) as -> by lra. rewrite E. apply softmax_ext. intros. unfold step. ring.
  - assert (X := U N). nra.
Qed.

Theorem one_sided_sign_theorem alpha : alpha <> 0 -> 0 <= alpha * S_d ->
  entropy (q alpha) - entropy p <= - KL (q alpha) p /\ - KL (q alpha) p < 0.
Proof.
  intros A S. split.
  - assert (B := step_bound z k lam alpha lam_range another_token).
    destruct (step_bound_denominator z k lam lam_range another_token) as [D _].
    fold p d in B, D. fold S_d (q alpha) in B. assert (F := first_order_term alpha S).
    enough (- S_d * (q alpha k - p k) / covariance p d (unit_vector k) <= 0) by lra.
    apply (Rmult_le_reg_r (covariance p d (unit_vector k))); [easy|].
    unfold Rdiv. rewrite Rmult_assoc, Rinv_l by lra. lra.
  - assert (0 < KL (q alpha) p) by (apply (KL_pos _ _ k); [apply softmax_policy|apply softmax_policy|now apply q_moves]). lra.
Qed.

(* ΔH = −KL exactly when p is uniform. *)
Theorem one_sided_sign_equality alpha : alpha <> 0 -> 0 <= alpha * S_d ->
  (entropy (q alpha) - entropy p = - KL (q alpha) p <-> (0 < lam /\ uniform p) \/ (lam = 0 /\ discriminant p k = 0)).
Proof.
  intros A S. assert (B := step_bound z k lam alpha lam_range another_token).
  assert (Beq := step_bound_equality z k lam alpha lam_range another_token).
  destruct (step_bound_denominator z k lam lam_range another_token) as [D _].
  fold p d in B, D, Beq. fold S_d (q alpha) in B, Beq. assert (F := first_order_term alpha S).
  set (D_0 := covariance p d (unit_vector k)) in *. split.
  - intros E.
    assert (Z : S_d * (q alpha k - p k) = 0).
    { rewrite E in B. assert (X : - S_d * (q alpha k - p k) / D_0 * D_0 >= 0 * D_0) by (apply Rmult_ge_compat_r; lra).
      unfold Rdiv in X. rewrite Rmult_assoc, Rinv_l in X by lra. lra. }
    assert (S0 : S_d = 0).
    { apply Rmult_integral in Z. destruct Z as [|Z]; [easy|]. assert (M := q_moves alpha A). lra. }
    assert (C : alpha = 0 \/ lam = 0 \/ (forall i j, i <> k -> j <> k -> p i = p j)).
    { apply Beq. rewrite E, S0. field. lra. }
    destruct C as [|[L|C]]; [easy| |].
    + right. split; [easy|]. unfold S_d in S0. rewrite L in S0. lra.
    + destruct (Req_dec lam 0) as [L|L]; [right; split; [easy|unfold S_d in S0; rewrite L in S0; lra]|left; split; [lra|]].
      assert (J := another_token). destruct J as [j J]. assert (O : In j (others k)) by now apply others_spec.
      assert (W : forall i, In i (others k) -> w p k i = w p k j).
      { intros i I. unfold w. do 2 f_equal. apply C; [now apply others_spec|easy]. }
      assert (P := slope_constant p k lam _ 0 W). rewrite Psi_0 in P by exact ray. unfold Ray.S_d in P. fold S_d in P.
      assert (Pk : 0 < p k) by apply softmax_pos.
      assert (Wj : w p k j = 0) by (rewrite S0 in P; unfold Rdiv in P; rewrite Rmult_0_l in P; symmetry in P; apply Rmult_integral in P; lra).
      assert (Ej : p j = p k) by (apply ln_inv; [apply softmax_pos|easy|unfold w in Wj; lra]).
      assert (Ei : forall i, p i = p k).
      { intros i. destruct (same_token i k) as [->|I]; [easy|]. rewrite <- Ej. now apply C. }
      intros i i'. now rewrite !Ei.
  - intros [[L U]|[L Sk]].
    + assert (E : entropy (q alpha) - entropy p = - S_d * (q alpha k - p k) / D_0 - KL (q alpha) p).
      { apply Beq. right; right. intros. apply U. }
      rewrite E. unfold S_d, baseline, mean. rewrite (Sum_ext _ (fun _ => 0)).
      * rewrite Sum_zero, uniform_discriminant by (easy || apply softmax_policy). field. lra.
      * intros i _. rewrite uniform_discriminant by (easy || apply softmax_policy). ring.
    + assert (E : entropy (q alpha) - entropy p = - S_d * (q alpha k - p k) / D_0 - KL (q alpha) p) by (apply Beq; auto).
      rewrite E. unfold S_d. rewrite L, Sk. field. lra.
Qed.

(* Strict descent along the whole ray, both ways. *)
Lemma entropy_ray t : entropy (q t) = entropy (Ray.q p k lam t).
Proof. apply entropy_ext. intros. apply softmax_ray, some_other. Qed.
Theorem strict_descent_forward s t : 0 <= S_d -> 0 <= s < t -> entropy (q t) < entropy (q s).
Proof.
  intros P [S0 L]. rewrite !entropy_ray.
  apply (decreasing_from_derivative (fun u => entropy (Ray.q p k lam u)) _ s t L (fun u _ => entropy_derive p k lam u)).
  intros u U. enough (0 < K p k lam u / T p k lam u ^ 2) by lra.
  apply Rdiv_lt_0_compat; [|apply T_square_pos; exact ray]. unfold K.
  assert (0 <= Psi p k lam u) by (apply Psi_forward; [exact ray|lra|rewrite Psi_0 by exact ray; exact P]).
  assert (G := variance_pos p k lam u). nra.
Qed.
Theorem strict_descent_backward s t : S_d <= 0 -> t < s <= 0 -> entropy (q t) < entropy (q s).
Proof.
  intros P [L S0]. rewrite !entropy_ray.
  apply (increasing_from_derivative (fun u => entropy (Ray.q p k lam u)) _ t s L (fun u _ => entropy_derive p k lam u)).
  intros u U. replace (- (K p k lam u / T p k lam u ^ 2)) with ((- K p k lam u) / T p k lam u ^ 2) by (unfold Rdiv; ring).
  apply Rdiv_lt_0_compat; [|apply T_square_pos; exact ray]. unfold K.
  assert (Psi p k lam u <= 0) by (apply Psi_backward; [exact ray|lra|rewrite Psi_0 by exact ray; exact P]).
  assert (G := variance_pos p k lam u). nra.
Qed.
End Statement.

(* λ = 1: a GRPO step δz = α (e_k − p), with S_c = S_k − N. *)
Corollary grpo_sign_theorem {V : vocabulary} (z : V -> R) (k : V) (alpha : R) : (exists j, j <> k) ->
  let p := softmax z in let q := softmax (step z alpha (fun i => unit_vector k i - p i)) in
  alpha <> 0 -> 0 <= alpha * centred_discriminant p k -> entropy q - entropy p <= - KL q p /\ - KL q p < 0.
Proof.
  intros O p q A S. assert (L : 0 <= 1 <= 1) by lra. assert (C := one_sided_sign_theorem z k 1 L O alpha A).
  cbv beta zeta in C. fold p in C. unfold centred_discriminant in S.
  assert (E : forall i, softmax (step z alpha (towards k 1 p)) i = q i).
  { intros i. apply softmax_ext. intros j. unfold step, towards. ring. }
  rewrite (entropy_ext _ _ E), (KL_ext _ _ p p E) in C by easy. apply C. lra.
Qed.
