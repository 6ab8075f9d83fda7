(* B.14. N = Cov_p(p, log p) >= 0 with equality iff p is uniform; the likeliest token has S_c > 0 unless p is uniform. *)
From Coq Require Import Reals Lra Psatz List.
From Coquelicot Require Import Coquelicot.
From EntropyTheory Require Import Sums Calculus Policy Discriminant.
Open Scope R_scope.

Section Baseline.
Context {V : vocabulary}.
Implicit Types (p : V -> R) (i k : V).

Theorem baseline_nonneg p : policy p -> baseline p = covariance p p (fun i => ln (p i)) /\ 0 <= baseline p.
Proof.
  intros [P T]. split; [now apply baseline_is_covariance|]. rewrite baseline_is_covariance by easy.
  assert (C := Chebyshev_equal p p (fun i => ln (p i)) (tokens V)). rewrite T in C. unfold covariance, mean.
  specialize (C (fun i _ => Rlt_le _ _ (P i)) (fun i j _ _ => ln_same_order _ _ (P i) (P j))). lra.
Qed.
Theorem baseline_zero_iff_uniform p : policy p -> (baseline p = 0 <-> uniform p).
Proof.
  intros [P T]. rewrite baseline_is_covariance by easy. split; intros E.
  - intros i j. apply ln_same_order_zero; auto.
    apply (Chebyshev_equality p p (fun i => ln (p i)) (tokens V)); [auto| | |apply tokens_complete|apply tokens_complete].
    + intros; now apply ln_same_order.
    + rewrite T. unfold covariance, mean in E. lra.
  - destruct (@some_token V) as [k _].
    unfold covariance, mean.
    rewrite (Sum_ext (fun i => p i * (p i * ln (p i))) (fun i => p i * (p k * ln (p k)))) by (intros i _; now rewrite (E i k)).
    rewrite (Sum_ext (fun i => p i * p i) (fun i => p i * p k)) by (intros i _; now rewrite (E i k)).
    rewrite (Sum_ext (fun i => p i * ln (p i)) (fun i => p i * ln (p k))) by (intros i _; now rewrite (E i k)).
    rewrite !Sum_scal_r, T. ring.
Qed.
(* S_c > 0 needs p_k > e^{−H}: the true boundary lies at or above that of Theorem 3.2. *)
Theorem centred_positive_needs_likely p k : policy p -> 0 < centred_discriminant p k -> exp (- entropy p) < p k.
Proof.
  intros P S. assert (N := baseline_nonneg p P). unfold centred_discriminant, discriminant in S.
  assert (Pk : 0 < p k) by apply P. rewrite <- (exp_ln (p k)) by easy. apply exp_increasing.
  destruct (Rle_lt_dec (entropy p + ln (p k)) 0); [nra|lra].
Qed.

Lemma uniform_discriminant p i : policy p -> uniform p -> discriminant p i = 0.
Proof.
  intros [P T] U. unfold discriminant, entropy.
  rewrite (Sum_ext _ (fun j => p j * ln (p i))) by (intros j _; now rewrite (U j i)). rewrite Sum_scal_r, T. ring.
Qed.
Lemma zero_discriminants_uniform p : policy p -> (forall i, discriminant p i = 0) -> uniform p.
Proof.
  intros [P T] Z i j. apply ln_inv; auto. assert (A := Z i). assert (B := Z j). unfold discriminant in A, B.
  assert (Pi := P i). assert (Pj := P j). apply Rmult_integral in A. apply Rmult_integral in B. lra.
Qed.
(* The likeliest token. *)
Theorem likeliest_token_positive p k : policy p -> (forall i, p i <= p k) -> ~ uniform p -> 0 < centred_discriminant p k.
Proof.
  intros Pol M U. assert (P := proj1 Pol). assert (T := proj2 Pol).
  assert (L : forall i, ln (p i) <= ln (p k)).
  { intros i. destruct (M i) as [L|E]; [left; now apply ln_increasing|rewrite E; lra]. }
  assert (K : 0 <= entropy p + ln (p k)).
  { unfold entropy. enough (Σ i, p i * ln (p i) <= ln (p k)) by lra.
    replace (ln (p k)) with (Σ i, p i * ln (p k)) by (rewrite Sum_scal_r, T; ring).
    apply Sum_le. intros i _. apply Rmult_le_compat_l; [left; apply P|apply L]. }
  assert (S : forall i, discriminant p i <= discriminant p k).
  { intros i. unfold discriminant. assert (Pi := P i). assert (Mi := M i). assert (Li := L i).
    apply Rle_trans with (p i * (entropy p + ln (p k))); [apply Rmult_le_compat_l; lra|apply Rmult_le_compat_r; lra]. }
  assert (N : baseline p <= discriminant p k).
  { replace (discriminant p k) with (Σ i, p i * discriminant p k) by (rewrite Sum_scal_r, T; ring).
    apply Sum_le. intros i _. apply Rmult_le_compat_l; [left; apply P|apply S]. }
  unfold centred_discriminant. destruct N as [|E]; [lra|]. exfalso. apply U.
  assert (Eq : forall i, discriminant p i = discriminant p k).
  { intros i. assert (Pi := P i). apply (Rmult_eq_reg_l (p i)); [|lra].
    apply (Sum_le_eq (fun i => p i * discriminant p i) (fun i => p i * discriminant p k) (tokens V)); [| |apply tokens_complete].
    - intros j _. apply Rmult_le_compat_l; [left; apply P|apply S].
    - rewrite Sum_scal_r, T. rewrite Rmult_1_l. exact E. }
  assert (Z := discriminants_sum_to_zero p T).
  assert (D : discriminant p k = 0).
  { rewrite (Sum_ext _ (fun _ => discriminant p k * 1)) in Z by (intros; rewrite Eq; ring). rewrite Sum_scal in Z.
    assert (0 < Sum (fun _ : V => 1) (tokens V)) by (apply Sum_pos; [apply tokens_nonempty|intros; lra]).
    apply Rmult_integral in Z. destruct Z; [easy|lra]. }
  apply zero_discriminants_uniform; [easy|]. intros i. now rewrite Eq.
Qed.
End Baseline.
