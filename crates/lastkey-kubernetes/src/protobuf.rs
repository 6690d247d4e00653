//! A strict reader of protobuf messages, for the few fields of foreign ones that are looked at.
//!
//! It copies nothing and allocates nothing, so what it reads may be a Secret. What it accepts is what
//! the wire format says: no groups, no field without a number, no length beyond the end, no number of
//! more than 64 bits.

/// The value of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Value<'a> {
    /// A varint.
    Number(u64),
    /// Text, bytes or a message.
    Bytes(&'a [u8]),
    /// 32 or 64 bits of fixed length, which nobody here looks into.
    Fixed,
}

impl<'a> Value<'a> {
    /// What is text, bytes or a message.
    pub(crate) fn bytes(self) -> Option<&'a [u8]> {
        match self {
            Self::Bytes(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// What is text.
    pub(crate) fn text(self) -> Option<&'a str> {
        std::str::from_utf8(self.bytes()?).ok()
    }
}

/// Shows every field of a message, in its order, with its number. `None` if it is no message, or
/// `visit` says so.
pub(crate) fn read<'a>(
    mut rest: &'a [u8],
    mut visit: impl FnMut(u64, Value<'a>) -> Option<()>,
) -> Option<()> {
    while !rest.is_empty() {
        let tag = varint(&mut rest)?;
        let number = tag >> 3;
        // the largest number of a field is 2²⁹ - 1
        if number == 0 || number >= 1 << 29 {
            return None;
        }
        let value = match tag & 7 {
            0 => Value::Number(varint(&mut rest)?),
            2 => {
                let length = usize::try_from(varint(&mut rest)?).ok()?;
                Value::Bytes(take(&mut rest, length)?)
            }
            1 => take(&mut rest, 8).map(|_| Value::Fixed)?,
            5 => take(&mut rest, 4).map(|_| Value::Fixed)?,
            _ => return None,
        };
        visit(number, value)?;
    }
    Some(())
}

/// Writes a field of bytes without its value: tag and length.
pub(crate) fn put_head(into: &mut Vec<u8>, number: u8, length: usize) {
    // a field below 16 has one byte for its tag
    into.push(number << 3 | 2);
    let mut rest = length;
    while rest >= 0x80 {
        into.push((rest & 0x7f) as u8 | 0x80);
        rest >>= 7;
    }
    into.push(rest as u8);
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some(taken)
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, after) = rest.split_first()?;
        *rest = after;
        // the tenth byte has room for one bit
        if shift == 63 && *byte > 1 {
            return None;
        }
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(bytes: &[u8]) -> Option<Vec<(u64, Value<'_>)>> {
        let mut fields = Vec::new();
        read(bytes, |number, value| {
            fields.push((number, value));
            Some(())
        })?;
        Some(fields)
    }

    #[test]
    fn fields_are_read_in_their_order() {
        let bytes = b"\x0a\x01a\x10\xac\x02\x19\0\0\0\0\0\0\0\0\x25\0\0\0\0";
        let fields = [
            (1, Value::Bytes(b"a")),
            (2, Value::Number(300)),
            (3, Value::Fixed),
            (4, Value::Fixed),
        ];
        assert_eq!(all(bytes).unwrap(), fields);
        assert_eq!(fields[0].1.text(), Some("a"));
        assert_eq!((fields[1].1.bytes(), fields[2].1.text()), (None, None));
        assert_eq!(all(b"\x0a\x01\xff").unwrap()[0].1.text(), None);
        assert_eq!(all(b""), Some(Vec::new()));
    }

    #[test]
    fn what_is_no_message_is_refused() {
        let largest = b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01";
        assert_eq!(all(largest).unwrap(), [(1, Value::Number(u64::MAX))]);
        for wrong in [
            &b"\x0a\x02a"[..],
            b"\x0a",
            b"\x08",
            b"\x08\x80",
            b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02",
            b"\x08\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x00",
            b"\x0b\x0c",
            b"\x0e",
            b"\x02\x00",
            b"\x80\x80\x80\x80\x10\x00",
            b"\x09\0\0\0\0\0\0\0",
            b"\x0d\0\0\0",
        ] {
            assert_eq!(all(wrong), None, "{wrong:?}");
        }
        assert_eq!(all(b"\xf8\xff\xff\xff\x0f\x00").unwrap(), [((1 << 29) - 1, Value::Number(0))]);
        assert_eq!(read(b"\x0a\0", |_, _| None), None);
    }

    proptest! {
        #[test]
        fn heads_are_read_back(number in 1_u8..16, value in prop::collection::vec(any::<u8>(), 0..40_000)) {
            let mut bytes = Vec::new();
            put_head(&mut bytes, number, value.len());
            bytes.extend_from_slice(&value);
            prop_assert_eq!(all(&bytes).unwrap(), [(u64::from(number), Value::Bytes(&value))]);
        }

        #[test]
        fn any_bytes_are_read(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Some(fields) = all(&bytes) {
                let inside: usize = fields.iter().filter_map(|(_, v)| v.bytes()).map(<[u8]>::len).sum();
                prop_assert!(inside + 2 * fields.len() <= bytes.len());
            }
        }
    }
}
