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
    /// Of each actor; see [`Manner::Ranked`].
    priorities: Vec<u64>,
}

/// How the next actor is chosen.
#[derive(Debug, Default, Clone, Copy)]
enum Manner {
    /// The same one so many times out of eight, else any.
    #[default]
    Any,
    Persistent(u64),
    /// The one that ranks highest; now and then, mostly after it has changed something, the current
    /// one gets another rank. So one may stand still there for long while the others go on.
    Ranked,
}

impl Turns {
    pub fn new(actors: usize, seed: u64) -> Self {
        let mut random = Random::of_part(seed, 1);
        let manners = [
            Manner::Any,
            Manner::Persistent(4),
            Manner::Persistent(7),
            Manner::Ranked,
            Manner::Ranked,
        ];
        let mut turns = Self {
            waiting: (0..actors).collect(),
            current: Some(0),
            manner: *random.pick(&manners),
            priorities: (0..actors).map(|_| random.draw()).collect(),
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
        let stays = match self.manner {
            Manner::Persistent(eighths) => random.in_eighths(eighths),
            Manner::Any | Manner::Ranked => false,
        };
        if stays && self.waiting.contains(&current) {
            return false;
        }
        self.current = match self.manner {
            _ if self.waiting.is_empty() => None,
            Manner::Ranked => {
                let falls_back = if has_changed { 4 } else { 1 };
                if random.in_eighths(falls_back) && (has_changed || random.in_eighths(2)) {
                    self.priorities[current] = random.draw();
                }
                let waiting = self.waiting.iter().copied();
                waiting.max_by_key(|actor| self.priorities[*actor])
            }
            Manner::Any | Manner::Persistent(_) => Some(*random.pick(&self.waiting)),
        };
        self.current != Some(current)
    }

    pub fn leave(&mut self, actor: usize) {
        self.waiting.retain(|waiting| *waiting != actor);
        self.pass(false);
    }
}
