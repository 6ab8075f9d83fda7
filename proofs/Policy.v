(* Vocabularies, policies, entropy, divergence, and the discriminant.

   A vocabulary is a finite nonempty type of tokens. Logits are a function z of the token, and the policy is
   p = softmax z. Every policy with positive probabilities is one of these: `every_policy_is_a_softmax`. *)
From Coq Require Import Reals Lra Psatz List.
From Coquelicot Require Import Coquelicot.
From EntropyTheory Require Import Sums Calculus.
Import ListNotations.
Open Scope R_scope.

Record vocabulary := {
  token :> Type;
  same_token : forall i j : token, {i = j} + {i <> j};
  tokens : list token;
  tokens_distinct : NoDup tokens;
  tokens_complete : forall i, In i tokens;
  tokens_nonempty : tokens <> nil
}.
Arguments same_token {v}.

(* There is one of every size: `of_size n` has n + 1 tokens. *)
Fixpoint token_of (n : nat) : Type := match n with O => unit | S m => option (token_of m) end.
Fixpoint same_of (n : nat) : forall i j : token_of n, {i = j} + {i <> j}.
Proof. destruct n as [|m]; simpl; decide equality. Defined.
Fixpoint tokens_of (n : nat) : list (token_of n) :=
  match n with O => [tt] | S m => None :: map Some (tokens_of m) end.
Lemma tokens_of_complete n : forall i, In i (tokens_of n).
Proof.
  induction n as [|m IH]; simpl; [intros []; auto|]. intros [i|]; [right|now left]. now apply in_map.
Qed.
Lemma tokens_of_distinct n : NoDup (tokens_of n).
Proof.
  induction n as [|m IH]; simpl; constructor; try constructor; auto.
  - intros I. apply in_map_iff in I. now destruct I as [x [E _]].
  - clear - IH. induction IH; simpl; constructor; auto. intros I. apply in_map_iff in I. destruct I as [y [E J]]. congruence.
Qed.
Lemma tokens_of_nonempty n : tokens_of n <> nil.
Proof. destruct n; easy. Qed.
Definition of_size (n : nat) : vocabulary :=
  Build_vocabulary (token_of n) (same_of n) (tokens_of n) (tokens_of_distinct n) (tokens_of_complete n) (tokens_of_nonempty n).
Lemma of_size_size n : length (tokens (of_size n)) = S n.
Proof. simpl. induction n as [|m IH]; simpl; [easy|]. now rewrite map_length, IH. Qed.

(* total f, written out Σ i, f i, is the sum over all tokens of the vocabulary. *)
Notation total f := (Sum f (tokens _)).
Notation "'Σ' i , e" := (Sum (fun i => e) (tokens _)) (at level 41, i name, e at level 41, right associativity).

Section Definitions.
Context {V : vocabulary}.
Implicit Types (z d p q f g : V -> R) (i k : V).

Definition softmax z i : R := exp (z i) / Σ j, exp (z j).
Definition entropy p : R := - Σ i, p i * ln (p i).
Definition KL q p : R := Σ i, q i * (ln (q i) - ln (p i)).
Definition mean p f : R := Σ i, p i * f i.
Definition covariance p f g : R := mean p (fun i => f i * g i) - mean p f * mean p g.
Definition variance p f : R := covariance p f f.

Definition discriminant p i : R := p i * (entropy p + ln (p i)). (* S_i *)
Definition baseline p : R := mean p (discriminant p). (* N *)
Definition centred_discriminant p k : R := discriminant p k - baseline p. (* S_c *)

Definition policy p : Prop := (forall i, 0 < p i) /\ total p = 1.
Definition uniform p : Prop := forall i j, p i = p j.

Definition step z (t : R) d i : R := z i + t * d i. (* z + t d *)
Definition unit_vector k i : R := if same_token i k then 1 else 0. (* e_k *)
(* e_k − λ p: λ = 1 is a GRPO step on the sampled token k, λ = 0 moves one logit. *)
Definition towards k (lam : R) p i : R := unit_vector k i - lam * p i.
End Definitions.

Section Basics.
Context {V : vocabulary}.
Implicit Types (z d p q f g : V -> R) (i k : V).


Lemma some_token : exists k : V, In k (tokens V).
Proof. assert (N := tokens_nonempty V). destruct (tokens V) as [|k l]; [easy|]. exists k. now left. Qed.

Lemma partition_pos z : 0 < Σ j, exp (z j).
Proof. apply Sum_pos; [apply tokens_nonempty|]. intros; apply exp_pos. Qed.
Lemma softmax_pos z i : 0 < softmax z i.
Proof. apply Rdiv_lt_0_compat; [apply exp_pos|apply partition_pos]. Qed.
Lemma softmax_total z : total (softmax z) = 1.
Proof.
  assert (P := partition_pos z). unfold softmax, Rdiv. rewrite Sum_scal_r. field. lra.
Qed.
Lemma softmax_policy z : policy (softmax z).
Proof. split; [apply softmax_pos|apply softmax_total]. Qed.
Lemma ln_softmax z i : ln (softmax z i) = z i - ln (Σ j, exp (z j)).
Proof.
  assert (P := partition_pos z). unfold softmax, Rdiv.
  rewrite ln_mult, ln_exp, ln_Rinv by (apply exp_pos || easy || now apply Rinv_0_lt_compat). ring.
Qed.
Lemma every_policy_is_a_softmax p : policy p -> forall i, softmax (fun j => ln (p j)) i = p i.
Proof.
  intros [P T] i. unfold softmax. rewrite (Sum_ext _ p) by (intros; now apply exp_ln). rewrite T, exp_ln by easy. field.
Qed.
(* softmax (z + t d) ∝ p exp (t d) *)
Lemma softmax_step z t d i : softmax (step z t d) i = softmax z i * exp (t * d i) / Σ j, softmax z j * exp (t * d j).
Proof.
  assert (P := partition_pos z). assert (Q := partition_pos (step z t d)). unfold softmax, step in *.
  rewrite (Sum_ext (fun j => exp (z j) / _ * exp (t * d j)) (fun j => / (Σ m, exp (z m)) * exp (z j + t * d j)))
    by (intros; rewrite exp_plus; field; lra).
  rewrite Sum_scal, exp_plus. field. lra.
Qed.
Lemma softmax_ext z z' i : (forall j, z j = z' j) -> softmax z i = softmax z' i.
Proof. intros E. unfold softmax. rewrite E. rewrite (Sum_ext _ (fun j => exp (z' j))); [easy|]. intros; now rewrite E. Qed.
Lemma entropy_ext p q : (forall i, p i = q i) -> entropy p = entropy q.
Proof. intros E. unfold entropy. f_equal. apply Sum_ext. intros. now rewrite E. Qed.
Lemma KL_ext q q' p p' : (forall i, q i = q' i) -> (forall i, p i = p' i) -> KL q p = KL q' p'.
Proof. intros E F. apply Sum_ext. intros. now rewrite E, F. Qed.

(* Sum over one token, and over the others. *)
Definition others k : list V := remove same_token k (tokens V).
Lemma others_spec k i : In i (others k) <-> i <> k.
Proof.
  unfold others. split; [intros I; now apply in_remove in I|]. intros D. apply in_in_remove; [easy|apply tokens_complete].
Qed.
Lemma remove_absent k (l : list V) : ~ In k l -> remove same_token k l = l.
Proof. apply notin_remove. Qed.
Lemma Sum_remove f k (l : list V) : NoDup l -> In k l -> Sum f l = f k + Sum f (remove same_token k l).
Proof.
  induction l as [|y l IH]; simpl; intros N I; [easy|]. inversion N as [|? ? A N']; subst.
  destruct (same_token k y) as [->|D].
  - rewrite remove_absent by easy. lra.
  - destruct I as [->|I]; [easy|]. simpl. rewrite (IH N' I). lra.
Qed.
Lemma sum_split f k : total f = f k + Sum f (others k).
Proof. apply Sum_remove; [apply tokens_distinct|apply tokens_complete]. Qed.
Lemma sum_unit_vector f k : Σ i, unit_vector k i * f i = f k.
Proof.
  rewrite (sum_split _ k). rewrite Sum_zero.
  - unfold unit_vector. destruct (same_token k k); [ring|easy].
  - intros i I. apply others_spec in I. unfold unit_vector. destruct (same_token i k); [easy|ring].
Qed.
Lemma mean_unit_vector p k : mean p (unit_vector k) = p k.
Proof. unfold mean. rewrite (Sum_ext _ (fun i => unit_vector k i * p i)) by (intros; ring). apply sum_unit_vector. Qed.
Lemma unit_vector_same k : unit_vector k k = 1.
Proof. unfold unit_vector. now destruct (same_token k k). Qed.
Lemma unit_vector_other k i : i <> k -> unit_vector k i = 0.
Proof. unfold unit_vector. now destruct (same_token i k). Qed.

Lemma policy_le_1 p i : policy p -> p i <= 1.
Proof. intros [P T]. rewrite <- T. apply Sum_In; [intros; left; auto|apply tokens_complete]. Qed.
Lemma mean_const p c : policy p -> mean p (fun _ => c) = c.
Proof. intros [P T]. unfold mean. rewrite Sum_scal_r, T. ring. Qed.

(* Gibbs' inequality and its equality case. *)
Theorem KL_nonneg q p : policy q -> policy p -> 0 <= KL q p.
Proof.
  intros [Q TQ] [P TP]. replace 0 with (Σ i, (q i - p i)) by (rewrite Sum_minus; lra).
  apply Sum_le. intros i _. now apply Gibbs_term.
Qed.
Theorem KL_zero q p : policy q -> policy p -> KL q p = 0 -> forall i, q i = p i.
Proof.
  intros [Q TQ] [P TP] E i. destruct (Req_dec (q i) (p i)) as [|D]; [easy|].
  assert (G := Gibbs_term_strict (q i) (p i) (Q i) (P i) D).
  enough (q i - p i = q i * (ln (q i) - ln (p i))) by lra.
  apply (Sum_le_eq (fun i => q i - p i) (fun i => q i * (ln (q i) - ln (p i))) (tokens V)).
  - intros; now apply Gibbs_term.
  - unfold KL in E. rewrite E, Sum_minus. lra.
  - apply tokens_complete.
Qed.
Theorem KL_pos q p i : policy q -> policy p -> q i <> p i -> 0 < KL q p.
Proof.
  intros Q P D. destruct (KL_nonneg q p Q P) as [|E]; [easy|]. exfalso. apply D. now apply KL_zero.
Qed.
End Basics.
