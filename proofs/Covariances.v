(* Covariances of the discriminant: B.9 (expected change, and the covariance of log-probability and advantage),
   B.11 (an entropy bonus), and the sign behind the four conditions of the paper's intervention. *)
From Coq Require Import Reals Lra List.
From Coquelicot Require Import Coquelicot.
From EntropyTheory Require Import Sums Calculus Policy Discriminant Gradient.
Open Scope R_scope.

Section Covariances.
Context {V : vocabulary}.
Implicit Types (z p A : V -> R) (i k : V).

(* B.9. E_{k~p}[A_k S_c(k)] = Cov_p(A, S). *)
Theorem expected_change p A : Σ k, p k * (A k * centred_discriminant p k) = covariance p A (discriminant p).
Proof.
  unfold centred_discriminant, covariance. fold (baseline p). unfold mean.
  rewrite (Sum_ext _ (fun k => p k * (A k * discriminant p k) - p k * A k * baseline p)) by (intros; ring).
  rewrite Sum_minus, Sum_scal_r. reflexivity.
Qed.
(* B.9. Cov_p(log p, p A) = Cov_p(A, S) + E_p[A] N; the two agree iff E_p[A] N = 0. *)
Theorem two_covariances p A :
  covariance p (fun i => ln (p i)) (fun i => p i * A i) = covariance p A (discriminant p) + mean p A * baseline p.
Proof.
  unfold covariance. fold (baseline p).
  assert (L : mean p (fun i => ln (p i)) = - entropy p) by (unfold mean, entropy; ring). rewrite L.
  unfold discriminant at 1, mean.
  rewrite (Sum_ext (fun i => p i * (A i * (p i * (entropy p + ln (p i))))) (fun i => p i * (p i * A i) * entropy p + p i * (ln (p i) * (p i * A i))))
    by (intros; ring).
  rewrite Sum_plus, Sum_scal_r. ring.
Qed.
(* B.11. Along −S, the direction of an entropy bonus, entropy has slope Σ S_i² >= 0. *)
Theorem entropy_bonus z : is_derive (fun beta => entropy (softmax (step z beta (fun i => - discriminant (softmax z) i)))) 0
    (Σ i, discriminant (softmax z) i ^ 2)
  /\ 0 <= Σ i, discriminant (softmax z) i ^ 2.
Proof.
  split; [|apply Sum_nonneg; intros; apply pow2_ge_0].
  eapply derive_eq; [apply entropy_gradient|]. rewrite <- Sum_opp. apply Sum_ext. intros. ring.
Qed.
(* Four conditions: keeping the tokens with S above a threshold has a nonnegative covariance with S. *)
Theorem kept_tokens_covariance p (kept : V -> R) threshold : policy p ->
  (forall i, kept i = if Rlt_dec threshold (discriminant p i) then 1 else 0) -> 0 <= covariance p (discriminant p) kept.
Proof.
  intros [P T] K. assert (C := Chebyshev_equal p (discriminant p) kept (tokens V) (fun i _ => Rlt_le _ _ (P i))).
  rewrite T in C. unfold covariance, mean. enough (forall i j, 0 <= (discriminant p i - discriminant p j) * (kept i - kept j)) as O.
  { specialize (C (fun i j _ _ => O i j)). lra. }
  intros i j. rewrite !K. destruct (Rlt_dec threshold (discriminant p i)), (Rlt_dec threshold (discriminant p j)); nra.
Qed.
End Covariances.
