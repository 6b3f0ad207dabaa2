//! Where a pickle ends that other bytes follow.

use super::cursor::Cursor;
use super::error::PickleError;
use super::opcode as op;

/// The length of the pickle that `bytes` begin with, `STOP` included; `None` where it needs more
/// bytes than there are.
///
/// Opcodes are passed over, not understood: nothing is known of the pickle but where it ends.
///
/// # Errors
/// Where there is an opcode that [`super::decode`] does not have.
pub fn length(bytes: &[u8]) -> Result<Option<usize>, PickleError> {
    let mut cursor = Cursor::new(bytes);
    loop {
        match pass_over(&mut cursor) {
            Ok(op::STOP) => return Ok(Some(cursor.position())),
            Ok(_) => {}
            Err(PickleError::Truncated { .. }) => return Ok(None),
            Err(refused) => return Err(refused),
        }
    }
}

/// Goes to the end of an opcode and its argument.
fn pass_over(cursor: &mut Cursor<'_>) -> Result<u8, PickleError> {
    let opcode = cursor.opcode()?;
    let nbytes = match opcode {
        op::PROTO | op::BININT1 | op::BINPUT | op::BINGET => 1,
        op::BININT2 => 2,
        op::BININT | op::LONG_BINPUT | op::LONG_BINGET => 4,
        op::BINFLOAT => 8,
        op::LONG1 | op::SHORT_BINSTRING | op::SHORT_BINBYTES => usize::from(cursor.byte()?),
        op::BINUNICODE | op::BINBYTES => cursor.u32()? as usize,
        op::GLOBAL => {
            cursor.line()?;
            cursor.line()?;
            0
        }
        _ if op::is_accepted(opcode) => 0,
        _ => {
            let offset = cursor.offset;
            return Err(PickleError::UnsupportedOpcode { offset, opcode });
        }
    };
    cursor.take(nbytes)?;
    Ok(opcode)
}
