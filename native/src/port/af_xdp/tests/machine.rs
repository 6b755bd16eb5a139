//! A machine for the programs of [`bpf`](super::super::bpf): the instructions they use, as RFC 9669 tells them, and as
//! strict as the kernel's verifier in what it lets a program read.

use crate::port::af_xdp::bpf::Instruction;

/// Where the frame and the context are, for the program.
const FRAME: u64 = 0x1_0000;
const CONTEXT: u64 = 0x1000;

/// What a program says of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Says {
    Pass,
    /// To the socket of this queue in the map of this descriptor.
    Redirect {
        map: u64,
        queue: u64,
    },
}

struct Registers([Option<u64>; 11]);

impl Registers {
    /// Panics where the verifier would refuse: nothing was written there.
    fn get(&self, register: u8) -> u64 {
        self.0[usize::from(register)].unwrap_or_else(|| panic!("r{register} was never written"))
    }
}

pub fn run(program: &[Instruction], frame: &[u8], queue: u32) -> Says {
    let mut registers = Registers([None; 11]);
    registers.0[1] = Some(CONTEXT);
    let (mut at, end) = (0, FRAME + frame.len() as u64);
    for _ in 0..10_000 {
        let Instruction { opcode, offset, immediate, .. } = program[at];
        let (to, from) = program[at].registers();
        let wide = i64::from(immediate) as u64;
        at += 1;
        let written = match opcode {
            0x61 | 0x69 | 0x71 => {
                let address = registers.get(from).wrapping_add_signed(i64::from(offset));
                if address < FRAME {
                    match address - CONTEXT {
                        0 => FRAME,
                        4 => end,
                        16 => u64::from(queue),
                        field => panic!("field {field} of the context"),
                    }
                } else {
                    let bytes = match opcode {
                        0x61 => 4,
                        0x69 => 2,
                        _ => 1,
                    };
                    let first = (address - FRAME) as usize;
                    let mut word = [0; 8];
                    word[..bytes].copy_from_slice(&frame[first..first + bytes]);
                    u64::from_le_bytes(word)
                }
            }
            0x18 => {
                assert_eq!((from, program[at].opcode), (1, 0), "an immediate is a map's descriptor");
                at += 1;
                wide
            }
            0xbf => registers.get(from),
            0xb7 => wide,
            0x0f => registers.get(to).wrapping_add(registers.get(from)),
            0x07 => registers.get(to).wrapping_add(wide),
            0x57 => registers.get(to) & wide,
            0x67 => registers.get(to) << immediate,
            0x05 | 0x2d | 0x16 | 0x56 | 0xa6 => {
                let taken = match opcode {
                    0x05 => true,
                    0x2d => registers.get(to) > registers.get(from),
                    0x16 => registers.get(to) as u32 == immediate as u32,
                    0x56 => registers.get(to) as u32 != immediate as u32,
                    _ => (registers.get(to) as u32) < immediate as u32,
                };
                if taken {
                    // The verifier refuses loops that it cannot bound; ours has none.
                    assert!(offset >= 0, "a jump backwards");
                    at += offset as usize;
                }
                continue;
            }
            0x85 => {
                assert_eq!(immediate, 51, "bpf_redirect_map is all that is called");
                assert_eq!(registers.get(3), 2, "a queue without a socket passes");
                return Says::Redirect { map: registers.get(1), queue: registers.get(2) };
            }
            0x95 => {
                assert_eq!(registers.get(0), 2, "XDP_PASS");
                return Says::Pass;
            }
            opcode => panic!("opcode {opcode:#x}"),
        };
        registers.0[usize::from(to)] = Some(written);
    }
    panic!("the program does not end");
}
