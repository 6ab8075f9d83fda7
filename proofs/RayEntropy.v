(* Entropy along the ray of one sampled token: H'(t) = −Cov_{q_t}(d, log p) − t Var_{q_t}(d), and Var_{q_t}(d) > 0. *)
From Coq Require Import Reals Lra Psatz List.
From Coquelicot Require Import Coquelicot.
From EntropyTheory Require Import Sums Calculus Policy Discriminant Ray.
Open Scope R_scope.

Section RayEntropy.
Context {V : vocabulary} (p : V -> R) (k : V) (lam : R) {ray : sampled_token p k lam}.
Notation rest := (others k).
Local Notation e := (e p lam).
Local Notation e_k := (e_k p k lam).
Local Notation d_k := (d_k p k lam).
Local Notation B := (B p k lam).
Local Notation B0 := (B0 p k lam).
Local Notation T := (T p k lam).
Local Notation T1 := (T1 p k lam).
Local Notation T2 := (T2 p k lam).
Local Notation q := (q p k lam).
Local Notation q_k := (q_k p k lam).
Local Notation Psi := (Psi p k lam).
Local Notation Psi_ := (Psi_ p k lam).
Local Notation phi := (phi p k lam).
Local Notation w := (w p k).

(* log q_i = log p_i + t d_i − log T and E_{q_t} d = T' / T *)
Lemma ln_q t i : ln (q t i) = ln (p i) + t * towards k lam p i - ln (T t).
Proof.
  assert (P := T_pos p k lam t). assert (Pi := p_pos p k lam i).
  unfold Ray.q, Rdiv, towards, unit_vector. destruct (same_token i k) as [->|D].
  - rewrite ln_mult, ln_Rinv by (apply (e_k_pos p k lam) || easy || now apply Rinv_0_lt_compat).
    unfold Ray.e_k, Ray.d_k. rewrite ln_mult, ln_exp by (easy || apply exp_pos). ring.
  - rewrite ln_mult, ln_Rinv by (apply (e_pos p k lam) || easy || now apply Rinv_0_lt_compat).
    unfold Ray.e. rewrite ln_mult, ln_exp by (easy || apply exp_pos). ring.
Qed.
Lemma mean_direction t : mean (q t) (towards k lam p) = T1 t / T t.
Proof.
  assert (P := T_pos p k lam t). unfold mean. rewrite (sum_split (fun i => q t i * towards k lam p i) k), q_at_k.
  rewrite (Sum_ext _ (fun i => q t i * (- (lam * p i)))).
  - rewrite (q_rest_sum p k lam). unfold Ray.B. rewrite (Sum_ext _ (fun i => - lam * (e t i * p i))) by (intros; ring).
    rewrite Sum_scal. unfold Ray.T1, Ray.q_k, Ray.B, towards. rewrite unit_vector_same. fold d_k. unfold Ray.d_k. field. lra.
  - intros i I. apply others_spec in I. unfold towards. rewrite unit_vector_other by easy. ring.
Qed.
Lemma entropy_along_ray t : entropy (q t) = ln (T t) - t * (T1 t / T t) - phi t.
Proof.
  rewrite <- mean_direction, (phi_is p k lam). assert (Q := proj2 (q_policy p k lam t)). unfold entropy, mean.
  rewrite (Sum_ext _ (fun i => q t i * ln (p i) + t * (q t i * towards k lam p i) - q t i * ln (T t))) by (intros; rewrite ln_q; ring).
  rewrite Sum_minus, Sum_plus, Sum_scal, Sum_scal_r, Q. ring.
Qed.

(* T² Var_{q_t}(d) = T T'' − T'² = Ψ_gap with gap_i = d_k − d_i. *)
Definition gap (i : V) : R := d_k + lam * p i.
Lemma Psi_gap t : Psi_ gap t = T2 t * T t - T1 t * T1 t.
Proof.
  unfold Ray.Psi_, gap.
  replace (B (fun i => p i * (d_k + lam * p i)) t) with (d_k * B p t + lam * B (fun i => p i * p i) t)
    by (unfold Ray.B; rewrite <- !Sum_scal, <- Sum_plus; apply Sum_ext; intros; ring).
  replace (B (fun i => d_k + lam * p i) t) with (d_k * B0 t + lam * B p t)
    by (unfold Ray.B, Ray.B0; rewrite <- !Sum_scal, <- Sum_plus; apply Sum_ext; intros; ring).
  unfold Ray.T2, Ray.T1, Ray.T. ring.
Qed.
Lemma variance_pos t : 0 < Psi_ gap t.
Proof.
  rewrite Psi_gap. assert (C : B p t * B p t <= B0 t * B (fun i => p i * p i) t).
  { apply (Chebyshev_equal (e t) p p rest); [intros; left; apply (e_pos p k lam)|]. intros. apply Rle_0_sqr. }
  assert (K := e_k_pos p k lam t). assert (D := d_k_pos p k lam). assert (P0 := B0_pos p k lam t). assert (L := lam_nonneg (sampled_token := ray)).
  assert (P1 := B_p_nonneg p k lam t).
  assert (P2 : 0 <= B (fun i => p i * p i) t) by (apply (B_nonneg p k lam); intros; apply Rle_0_sqr).
  replace (T2 t * T t - T1 t * T1 t) with
    (e_k t * B0 t * (d_k * d_k) + 2 * (lam * (e_k t * d_k * B p t)) + lam * lam * (e_k t * B (fun i => p i * p i) t)
     + lam * lam * (B0 t * B (fun i => p i * p i) t - B p t * B p t)) by (unfold Ray.T2, Ray.T1, Ray.T; ring).
  assert (0 < e_k t * B0 t * (d_k * d_k)) by (apply Rmult_lt_0_compat; now apply Rmult_lt_0_compat).
  assert (0 <= lam * (e_k t * d_k * B p t)) by (apply Rmult_le_pos; [easy|apply Rmult_le_pos; [left; now apply Rmult_lt_0_compat|easy]]).
  assert (LL : 0 <= lam * lam) by (now apply Rmult_le_pos).
  assert (0 <= lam * lam * (e_k t * B (fun i => p i * p i) t)) by (apply Rmult_le_pos; [easy|apply Rmult_le_pos; lra]).
  assert (0 <= lam * lam * (B0 t * B (fun i => p i * p i) t - B p t * B p t)) by (apply Rmult_le_pos; lra). lra.
Qed.

(* H' = −K / T² with K = Ψ_w + t Ψ_gap. *)
Definition K (t : R) : R := Psi t + t * Psi_ gap t.
Lemma entropy_derive t : is_derive (fun u => entropy (q u)) t (- (K t / T t ^ 2)).
Proof.
  assert (P := T_pos p k lam t).
  apply (is_derive_ext (fun u => ln (T u) - u * (T1 u / T u) - phi u)); [intros; symmetry; apply entropy_along_ray|].
  eapply derive_eq.
  - apply (derive_minus (fun u => ln (T u) - u * (T1 u / T u)) phi); [|apply (phi_derive p k lam)].
    apply (derive_minus (fun u => ln (T u)) (fun u => u * (T1 u / T u))).
    + apply (derive_ln T); [easy|apply T_derive].
    + apply (derive_mult (fun u => u) (fun u => T1 u / T u)); [apply (is_derive_id t)|].
      apply (is_derive_div T1 T); [apply T1_derive|apply T_derive|lra].
  - cbv beta. unfold K. rewrite Psi_gap. unfold one; simpl. field. lra.
Qed.

(* The sign of Ψ persists in the direction in which the slope Ψ / g grows. *)
Lemma Psi_forward t : 0 <= t -> 0 <= Psi 0 -> 0 <= Psi t.
Proof.
  intros L P. assert (M := slope_grows p k lam 0 t L). assert (G0 := g_pos p k lam 0). assert (G := g_pos p k lam t).
  assert (0 <= Psi 0 / g p k lam 0) by (apply Rmult_le_pos; [easy|left; now apply Rinv_0_lt_compat]).
  replace (Psi t) with (Psi t / g p k lam t * g p k lam t) by (field; lra). apply Rmult_le_pos; lra.
Qed.
Lemma Psi_backward t : t <= 0 -> Psi 0 <= 0 -> Psi t <= 0.
Proof.
  intros L P. assert (M := slope_grows p k lam t 0 L). assert (G0 := g_pos p k lam 0). assert (G := g_pos p k lam t).
  assert (0 <= - Psi 0 * / g p k lam 0) by (apply Rmult_le_pos; [lra|left; now apply Rinv_0_lt_compat]).
  enough (0 <= - (Psi t / g p k lam t) * g p k lam t) by (replace (- (Psi t / g p k lam t) * g p k lam t) with (- Psi t) in * by (field; lra); lra).
  apply Rmult_le_pos; [|lra]. unfold Rdiv in *. lra.
Qed.
End RayEntropy.
