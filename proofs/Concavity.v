(* T2. Along z + t (e_k − λ p), 0 <= λ <= 1, the entropy H(q_t) is a strictly concave function of q_t(k) while
   t λ max_{i≠k} p_i <= 1: for every t < 0 and every t <= 1. So entropy rises at most once there, and then falls.

   Proof. H' = −K / T² and q_k' = p_k g / T², so the slope of −H in q_k is K / (p_k g), and K = Ψ_f for
   f_i = log(q_k / q_i) = w_i + t (d_k − d_i), which falls where p rises iff t λ p_i <= 1. *)
From Coq Require Import Reals Lra Psatz List.
From Coquelicot Require Import Coquelicot.
From EntropyTheory Require Import Sums Calculus Policy Discriminant Ray RayEntropy StepBound.
Open Scope R_scope.

Section Core.
Context {V : vocabulary} (p : V -> R) (k : V) (lam : R) {ray : sampled_token p k lam}.
Notation rest := (others k).
Local Notation e := (e p lam).
Local Notation d_k := (d_k p k lam).
Local Notation B := (B p k lam).
Local Notation T := (T p k lam).
Local Notation c1 := (c1 p k lam).
Local Notation c2 := (c2 p k lam).
Local Notation g := (g p k lam).
Local Notation Psi_ := (Psi_ p k lam).
Local Notation dPsi_ := (dPsi_ p k lam).
Local Notation Psi := (Psi p k lam).
Local Notation w := (w p k).
Local Notation gap := (gap p k lam).
Local Notation K := (K p k lam).

Definition log_ratio (t : R) (i : V) : R := w i + t * gap i. (* log (q_k / q_i) *)

Lemma Psi_log_ratio t : Psi_ (log_ratio t) t = K t.
Proof.
  unfold RayEntropy.K, Ray.Psi, Ray.Psi_, log_ratio, Ray.B.
  rewrite (Sum_ext (fun i => e t i * (p i * (w i + t * gap i))) (fun i => e t i * (p i * w i) + t * (e t i * (p i * gap i)))) by (intros; ring).
  rewrite (Sum_ext (fun i => e t i * (w i + t * gap i)) (fun i => e t i * w i + t * (e t i * gap i))) by (intros; ring).
  rewrite !Sum_plus, !Sum_scal. ring.
Qed.
Lemma dPsi_log_ratio t : dPsi_ (log_ratio t) t = dPsi_ w t + t * dPsi_ gap t.
Proof.
  unfold Ray.dPsi_, log_ratio, Ray.B.
  rewrite (Sum_ext (fun i => e t i * (p i * (p i * (w i + t * gap i))))
    (fun i => e t i * (p i * (p i * w i)) + t * (e t i * (p i * (p i * gap i))))) by (intros; ring).
  rewrite (Sum_ext (fun i => e t i * (w i + t * gap i)) (fun i => e t i * w i + t * (e t i * gap i))) by (intros; ring).
  rewrite !Sum_plus, !Sum_scal. ring.
Qed.
Lemma K_derive t : is_derive K t (dPsi_ (log_ratio t) t + Psi_ gap t).
Proof.
  rewrite dPsi_log_ratio. unfold RayEntropy.K. eapply derive_eq.
  - apply derive_plus; [apply Psi__derive|]. apply (derive_mult (fun u => u) (Psi_ gap)); [apply (is_derive_id t)|apply Psi__derive].
  - unfold one; simpl. ring.
Qed.
(* For p_i < p_j: p_j (log p_j − log p_i) >= p_j − p_i >= t λ p_j (p_j − p_i). *)
Lemma log_ratio_antitone t : (forall i, In i rest -> t * (lam * p i) <= 1) -> antitone p k (log_ratio t).
Proof.
  assert (Half : forall a b, 0 < a -> a < b -> t * (lam * b) <= 1 -> t * lam * (b - a) <= ln b - ln a).
  { intros a b A L H. assert (G := Gibbs_term b a (Rlt_trans _ _ _ A L) A).
    assert (t * lam * b * (b - a) <= 1 * (b - a)) by (apply Rmult_le_compat_r; lra).
    apply Rmult_le_reg_l with b; lra. }
  intros A i j I J. assert (Pi := p_pos p k lam i). assert (Pj := p_pos p k lam j). unfold log_ratio, Ray.w, RayEntropy.gap.
  replace (ln (p k) - ln (p i) + t * (d_k + lam * p i) - (ln (p k) - ln (p j) + t * (d_k + lam * p j)))
    with (- (ln (p i) - ln (p j)) + t * lam * (p i - p j)) by ring.
  destruct (Rtotal_order (p i) (p j)) as [L|[E|L]].
  - assert (H := Half (p i) (p j) Pi L (A j J)). nra.
  - rewrite E. lra.
  - assert (H := Half (p j) (p i) Pj L (A i I)). nra.
Qed.
Lemma entropy_slope_grows a b : a < b -> (forall i, In i rest -> b * (lam * p i) <= 1) -> K a / g a < K b / g b.
Proof.
  intros L A. apply (increasing_from_derivative (fun u => K u / g u)
    (fun u => ((dPsi_ (log_ratio u) u + Psi_ gap u) * g u - K u * (exp (u * d_k) * c2 u)) / (g u) ^ 2) a b L).
  - intros u _. apply (is_derive_div K g); [apply K_derive|apply g_derive|]. assert (G := g_pos p k lam u). lra.
  - intros u U. assert (G := g_pos p k lam u). assert (W := variance_pos p k lam u). assert (E := exp_pos (u * d_k)).
    assert (M : antitone p k (log_ratio u)).
    { apply log_ratio_antitone. intros i I. assert (Ai := A i I). assert (Pi := p_pos p k lam i).
      assert (0 <= lam * p i) by (apply Rmult_le_pos; [apply lam_nonneg|lra]).
      assert (u * (lam * p i) <= b * (lam * p i)) by (apply Rmult_le_compat_r; lra). lra. }
    assert (Key := Psi_inequality p k lam (log_ratio u) u M). rewrite Psi_log_ratio in Key.
    apply Rdiv_lt_0_compat; [|nra].
    assert (0 < Psi_ gap u * g u) by (now apply Rmult_lt_0_compat).
    apply (Rmult_le_compat_l (exp (u * d_k))) in Key; [|lra]. unfold Ray.g in *. lra.
Qed.
End Core.

Section Statement.
Context {V : vocabulary}.
Variables (z : V -> R) (k : V) (lam : R).
Hypothesis lam_range : 0 <= lam <= 1.
Hypothesis another_token : exists j, j <> k.

Let p := softmax z.
Let d := towards k lam p. (* e_k − λ p *)
Let q t := softmax (step z t d).
Let H t := entropy (q t).

#[local] Instance ray : sampled_token p k lam := sampled z k lam lam_range another_token.

Lemma q_is t i : q t i = Ray.q p k lam t i.
Proof. apply softmax_ray, some_other. Qed.
Lemma H_is t : H t = entropy (Ray.q p k lam t).
Proof. apply entropy_ext. intros. apply q_is. Qed.
Lemma q_k_is t : q t k = Ray.q_k p k lam t.
Proof. rewrite <- q_at_k. apply q_is. Qed.

(* Chord slopes of H against q_k fall strictly along the ray. *)
Theorem entropy_concave a b c : a < b < c -> (forall i, i <> k -> c * lam * p i <= 1) ->
  (H c - H b) / (q c k - q b k) < (H b - H a) / (q b k - q a k).
Proof.
  intros O A. assert (C := strictly_convex_chords (fun t => - entropy (Ray.q p k lam t)) (Ray.q_k p k lam)
    (fun t => K p k lam t / g p k lam t / p k) (fun t => p k * g p k lam t / T p k lam t ^ 2)).
  assert (Pk := p_pos p k lam k).
  rewrite !H_is, !q_k_is. destruct O as [O1 O2].
  assert (X1 := q_k_increases p k lam a b O1). assert (X2 := q_k_increases p k lam b c O2).
  enough ((- entropy (Ray.q p k lam b) - - entropy (Ray.q p k lam a)) / (q_k p k lam b - q_k p k lam a) <
    (- entropy (Ray.q p k lam c) - - entropy (Ray.q p k lam b)) / (q_k p k lam c - q_k p k lam b)) as N.
  { unfold Rdiv in *. lra. }
  apply C; try lra.
  - intros t. eapply derive_eq; [apply derive_opp, (entropy_derive p k lam t)|].
    assert (G := g_pos p k lam t). assert (P := T_pos p k lam t). field. lra.
  - intros t. apply (q_k_derive p k lam).
  - intros t. apply (q_k_slope_pos p k lam).
  - intros u v U L W. apply Rmult_lt_compat_r; [now apply Rinv_0_lt_compat|]. apply (entropy_slope_grows p k lam); [easy|].
    intros i I. apply others_spec in I. assert (Ai := A i I). assert (Pi := p_pos p k lam i).
    assert (0 <= lam * p i) by (apply Rmult_le_pos; lra).
    assert (v * (lam * p i) <= c * (lam * p i)) by (apply Rmult_le_compat_r; lra). lra.
Qed.
(* The condition holds for every t <= 1. *)
Lemma concave_up_to_1 c : c <= 1 -> forall i, i <> k -> c * lam * p i <= 1.
Proof.
  intros C i _. assert (P := policy_le_1 p i (softmax_policy z)). assert (Pi := p_pos p k lam i).
  assert (0 <= lam * p i <= 1) by (split; [apply Rmult_le_pos; lra|nra]). nra.
Qed.

(* Entropy between two steps is above the lower of the two ends: a rise is one interval. *)
Theorem unimodal_rise a b c : a < b < c -> (forall i, i <> k -> c * lam * p i <= 1) -> Rmin (H a) (H c) < H b.
Proof.
  intros O A. assert (C := entropy_concave a b c O A). destruct O as [O1 O2]. rewrite !q_k_is in C.
  assert (X1 := q_k_increases p k lam a b O1). assert (X2 := q_k_increases p k lam b c O2).
  destruct (Rlt_le_dec (H a) (H b)) as [L|L]; [assert (M := Rmin_l (H a) (H c)); lra|].
  assert (M := Rmin_r (H a) (H c)). enough (H c < H b) by lra.
  assert ((H b - H a) / (q_k p k lam b - q_k p k lam a) <= 0).
  { apply (Rmult_le_reg_r (q_k p k lam b - q_k p k lam a)); [lra|]. unfold Rdiv. rewrite Rmult_assoc, Rinv_l by lra. lra. }
  assert (N : (H c - H b) / (q_k p k lam c - q_k p k lam b) < 0) by lra.
  apply (Rmult_lt_compat_r (q_k p k lam c - q_k p k lam b)) in N; [|lra]. unfold Rdiv in N. rewrite Rmult_assoc, Rinv_l in N by lra. lra.
Qed.
(* Away from t = 0 in either direction: once entropy has come back, it falls for good. *)
Corollary falls_for_good_forward a b c : a < b < c -> (forall i, i <> k -> c * lam * p i <= 1) -> H b <= H a -> H c < H b.
Proof. intros O A F. assert (U := unimodal_rise a b c O A). unfold Rmin in U. destruct (Rle_dec (H a) (H c)); lra. Qed.
Corollary falls_for_good_backward a b c : c < b < a -> (forall i, i <> k -> a * lam * p i <= 1) -> H b <= H a -> H c < H b.
Proof. intros O A F. assert (U := unimodal_rise c b a O A). unfold Rmin in U. destruct (Rle_dec (H c) (H a)); lra. Qed.

(* The ingredient of T1: E_{q_t}[log p] is a convex function of q_t(k) along the whole ray. *)
Theorem mean_log_prob_convex a b c : a < b < c ->
  let L t := mean (q t) (fun i => ln (p i)) in (L b - L a) / (q b k - q a k) <= (L c - L b) / (q c k - q b k).
Proof.
  intros O L. assert (Pk := p_pos p k lam k).
  assert (E : forall t, L t = phi p k lam t).
  { intros t. rewrite phi_is by exact ray. apply Sum_ext. intros i _. now rewrite q_is. }
  rewrite !E, !q_k_is.
  apply (convex_chords (phi p k lam) (Ray.q_k p k lam) (fun t => Psi p k lam t / g p k lam t / p k)
    (fun t => p k * g p k lam t / T p k lam t ^ 2)); [| | |easy|].
  - intros t. eapply derive_eq; [apply (phi_derive p k lam)|].
    assert (G := g_pos p k lam t). assert (P := T_pos p k lam t). field. lra.
  - intros t. apply (q_k_derive p k lam).
  - intros t. apply (q_k_slope_pos p k lam).
  - intros u v _ M _. apply Rmult_le_compat_r; [left; now apply Rinv_0_lt_compat|]. now apply (slope_grows p k lam).
Qed.
End Statement.
