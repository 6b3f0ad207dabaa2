//! Whose turn it is: several threads run as one, in an order that a seed decides.

use super::random::Random;

/// The actors that are still at work, and the one whose turn it is. Without actors it is always
/// everybody's turn.
#[derive(Debug, Default)]
pub struct Turns {
    waiting: Vec<usize>,
    current: Option<usize>,
    random: Option<Random>,
    manner: Manner,
}

/// An actor, and how many changes it makes before it is somebody else's turn.
pub type Stretch = (usize, usize);

/// Changes in a row: twice as many as a rank makes in a save.
const MAX_STRETCH: usize = 30;

/// How the next actor is chosen.
#[derive(Debug, Default, Clone)]
enum Manner {
    /// Any of them.
    #[default]
    Any,
    /// The same one so many times out of eight, else any.
    Persistent(u64),
    /// The same one until it has changed so many more things, then any.
    InStretches { changes_left: usize },
    /// This one alone until it has changed so many things; then the others, until they have finished.
    StandsStill { actor: usize, after_changes: usize },
    /// These stretches, last first; then one actor after the other to its end.
    Planned(Vec<Stretch>),
}

impl Turns {
    pub fn new(actors: usize, seed: u64) -> Self {
        let mut random = Random::of_part(seed, 1);
        // A rank changes some fifteen things in a save, rank 0 four times as many.
        let most_changes = *random.pick(&[15, 60]);
        let stands_still = Manner::StandsStill {
            actor: random.below(actors),
            after_changes: random.below(most_changes),
        };
        let manners = [
            Manner::Any,
            Manner::Persistent(6),
            Manner::InStretches { changes_left: 0 },
            Manner::InStretches { changes_left: 0 },
            stands_still,
        ];
        let manner = random.pick(&manners).clone();
        Self::begin(actors, manner, random)
    }

    /// These stretches, and then one actor after the other.
    pub fn planned(actors: usize, stretches: &[Stretch]) -> Self {
        let manner = Manner::Planned(stretches.iter().rev().copied().collect());
        Self::begin(actors, manner, Random::new(0))
    }

    fn begin(actors: usize, manner: Manner, random: Random) -> Self {
        let mut turns = Self {
            waiting: (0..actors).collect(),
            current: Some(0),
            manner,
            random: Some(random),
        };
        turns.pass(false);
        turns
    }

    pub fn is_turn_of(&self, actor: usize) -> bool {
        self.current.is_none_or(|current| current == actor)
    }

    /// Chooses who is next after an operation that has changed something or not; tells whether that
    /// is somebody else.
    pub fn pass(&mut self, has_changed: bool) -> bool {
        let (Some(random), Some(current)) = (&mut self.random, self.current) else {
            return false;
        };
        let others: Vec<usize> = match &mut self.manner {
            Manner::Any => self.waiting.clone(),
            Manner::Persistent(eighths) => {
                if self.waiting.contains(&current) && random.in_eighths(*eighths) {
                    return false;
                }
                self.waiting.clone()
            }
            Manner::InStretches { changes_left } => {
                *changes_left = changes_left.saturating_sub(usize::from(has_changed));
                if self.waiting.contains(&current) && *changes_left > 0 {
                    return false;
                }
                *changes_left = 1 + random.below(MAX_STRETCH);
                self.waiting.clone()
            }
            Manner::StandsStill {
                actor,
                after_changes,
            } => {
                if current == *actor && has_changed {
                    *after_changes = after_changes.saturating_sub(1);
                }
                let is_chosen = |waiting: &&usize| (*waiting == actor) == (*after_changes > 0);
                let chosen: Vec<_> = self.waiting.iter().filter(is_chosen).copied().collect();
                if chosen.is_empty() {
                    self.waiting.clone()
                } else {
                    chosen
                }
            }
            Manner::Planned(stretches) => {
                if let Some((actor, changes)) = stretches.last_mut() {
                    *changes =
                        changes.saturating_sub(usize::from(has_changed && current == *actor));
                }
                while let Some((actor, changes)) = stretches.last()
                    && (*changes == 0 || !self.waiting.contains(actor))
                {
                    stretches.pop();
                }
                let planned = stretches.last().map(|(actor, _)| *actor);
                planned
                    .or(self.waiting.first().copied())
                    .into_iter()
                    .collect()
            }
        };
        self.current = (!others.is_empty()).then(|| *random.pick(&others));
        self.current != Some(current)
    }

    pub fn leave(&mut self, actor: usize) {
        self.waiting.retain(|waiting| *waiting != actor);
        self.pass(false);
    }
}
