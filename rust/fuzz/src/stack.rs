//! A pickle as torch's unpickler runs it, as far as the stack goes: which object each opcode meets.
//!
//! The decoder has seen that items are set on dicts only, and that nothing but globals is called. torch gets
//! another pickle where there is something of numpy in it: here the same must hold.

use std::collections::HashMap;
use std::rc::Rc;

#[derive(Debug, Clone)]
enum Value {
    /// `'storage'`: of an id, or in the place of a function.
    Word,
    Dict,
    List,
    Tuple(Rc<[Value]>),
    /// What makes a dict when it is called.
    DictType,
    Global,
    /// What was asked for by an id of two parts.
    Made,
    Other,
}

/// Runs a pickle that was made for torch; returns how many objects it asks for.
///
/// # Panics
/// Where an opcode meets what it must not.
pub fn unpickle(pickle: &[u8]) -> usize {
    let mut machine = Machine {
        rest: pickle,
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        asked: 0,
    };
    while machine.step() {}
    assert_eq!((machine.stack.len(), machine.marks.len()), (1, 0));
    machine.asked
}

struct Machine<'a> {
    rest: &'a [u8],
    stack: Vec<Value>,
    marks: Vec<usize>,
    memo: HashMap<u32, Value>,
    asked: usize,
}

impl<'a> Machine<'a> {
    fn step(&mut self) -> bool {
        match self.byte() {
            b'.' => return false,
            0x80 => {
                self.byte();
            }
            b'(' => self.marks.push(self.stack.len()),
            b'q' => {
                let index = self.byte().into();
                self.put(index);
            }
            b'r' => {
                let index = self.u32();
                self.put(index);
            }
            b'h' => {
                let index = self.byte().into();
                self.get(index);
            }
            b'j' => {
                let index = self.u32();
                self.get(index);
            }
            b'c' => self.global(),
            b'X' => {
                let length = self.u32() as usize;
                self.text(length);
            }
            b'U' => {
                let length = self.byte().into();
                self.text(length);
            }
            opcode => self.build_up(opcode),
        }
        true
    }

    fn build_up(&mut self, opcode: u8) {
        match opcode {
            b'}' => self.stack.push(Value::Dict),
            b']' => self.stack.push(Value::List),
            b')' => self.stack.push(Value::Tuple(Rc::default())),
            0x85..=0x87 => {
                let items = self.take(usize::from(opcode - 0x84));
                self.stack.push(Value::Tuple(items.into()));
            }
            b't' => {
                let items = self.take_marked();
                self.stack.push(Value::Tuple(items.into()));
            }
            b'a' | b'e' => {
                if opcode == b'a' {
                    self.take(1);
                } else {
                    self.take_marked();
                }
                assert!(matches!(self.top(), Value::List));
            }
            b's' | b'u' => {
                let items = match opcode {
                    b's' => self.take(2),
                    _ => self.take_marked(),
                };
                assert!(items.len().is_multiple_of(2));
                assert!(matches!(self.top(), Value::Dict));
            }
            b'R' | 0x81 => self.call(opcode),
            b'b' => {
                self.take(1);
                assert!(!matches!(self.top(), Value::Made | Value::Word));
            }
            b'Q' => self.persistent_id(),
            opcode => self.literal(opcode),
        }
    }

    fn literal(&mut self, opcode: u8) {
        let nbytes = match opcode {
            b'N' | 0x88 | 0x89 | 0x8f => 0,
            b'K' => 1,
            b'M' => 2,
            b'J' => 4,
            b'G' => 8,
            0x8a => self.byte().into(),
            _ => panic!("torch has no opcode {opcode:#04x}"),
        };
        self.bytes(nbytes);
        self.stack.push(Value::Other);
    }

    fn call(&mut self, opcode: u8) {
        let [callable, args] = self.take(2).try_into().unwrap();
        assert!(matches!(args, Value::Tuple(_)));
        self.stack.push(match callable {
            Value::DictType if opcode == b'R' => Value::Dict,
            Value::DictType | Value::Global => Value::Other,
            other => panic!("a call of {other:?}"),
        });
    }

    fn persistent_id(&mut self) {
        let Some(Value::Tuple(parts)) = self.take(1).pop() else {
            panic!("the id is not a tuple");
        };
        assert!(matches!(parts.first(), Some(Value::Word)));
        let answer = match &*parts {
            [_, _] => {
                self.asked += 1;
                Value::Made
            }
            [_, made, _] => {
                assert!(matches!(made, Value::Made));
                made.clone()
            }
            _ => Value::Other,
        };
        self.stack.push(answer);
    }

    fn global(&mut self) {
        let (module, name) = (self.line(), self.line());
        let is_dict = module == b"collections" && matches!(name, b"OrderedDict" | b"Counter");
        self.stack.push(if is_dict {
            Value::DictType
        } else {
            // torch would refuse them, with whatever else is in the pickle.
            assert!(module != b"numpy" || !matches!(name, b"ndarray" | b"dtype"));
            Value::Global
        });
    }

    fn text(&mut self, length: usize) {
        let is_word = self.bytes(length) == b"storage";
        self.stack
            .push(if is_word { Value::Word } else { Value::Other });
    }

    fn put(&mut self, index: u32) {
        let top = self.top().clone();
        self.memo.insert(index, top);
    }

    fn get(&mut self, index: u32) {
        self.stack.push(self.memo[&index].clone());
    }

    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn top(&self) -> &Value {
        self.stack[self.floor()..].last().unwrap()
    }

    fn take(&mut self, count: usize) -> Vec<Value> {
        let start = self.stack.len() - count;
        assert!(start >= self.floor());
        self.stack.split_off(start)
    }

    fn take_marked(&mut self) -> Vec<Value> {
        let start = self.marks.pop().unwrap();
        self.stack.split_off(start)
    }

    fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.rest.split_at(count);
        self.rest = rest;
        taken
    }

    fn byte(&mut self) -> u8 {
        self.bytes(1)[0]
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.bytes(4).try_into().unwrap())
    }

    fn line(&mut self) -> &'a [u8] {
        let end = self.rest.iter().position(|byte| *byte == b'\n').unwrap();
        let line = self.bytes(end);
        self.bytes(1);
        line
    }
}
