//! HPACK's Huffman code (RFC 7541 §5.2 and appendix B), and how to write another value into the
//! very bits of one.
//!
//! The code is canonical: codes of one length are consecutive and in the order of their symbols,
//! so the lengths alone are the table.

const SYMBOLS: usize = 257;
const EOS: u16 = 256;
const MAX_BITS: usize = 30;

/// Code length of each byte, and of EOS.
#[rustfmt::skip]
const LENGTHS: [u8; SYMBOLS] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28,
    28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6,
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5,
    6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23,
    21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25,
    19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
    30,
];

/// Legal bytes of an authority with codes of 5, 6, 7 and 8 bits.
const FILL: [u8; 4] = *b"abjX";

/// All codes of one length.
#[derive(Clone, Copy)]
struct Group {
    /// The first of them.
    code: u32,
    count: u32,
    /// Where their symbols begin in [`Code::symbols`].
    start: usize,
}

struct Code {
    groups: [Group; MAX_BITS + 1],
    symbols: [u16; SYMBOLS],
}

static CODE: Code = Code::build();

impl Code {
    const fn build() -> Self {
        let mut groups = [Group { code: 0, count: 0, start: 0 }; MAX_BITS + 1];
        let mut symbols = [0; SYMBOLS];
        let (mut placed, mut code, mut bits) = (0, 0, 1);
        while bits <= MAX_BITS {
            code <<= 1;
            let start = placed;
            let mut symbol = 0;
            while symbol < SYMBOLS {
                if LENGTHS[symbol] as usize == bits {
                    symbols[placed] = symbol as u16;
                    placed += 1;
                }
                symbol += 1;
            }
            let count = (placed - start) as u32;
            groups[bits] = Group { code, count, start };
            code += count;
            bits += 1;
        }
        Self { groups, symbols }
    }

    fn symbol(&self, code: u32, bits: usize) -> Option<u16> {
        let group = self.groups.get(bits)?;
        let offset = code.checked_sub(group.code).filter(|&offset| offset < group.count)?;
        self.symbols.get(group.start + offset as usize).copied()
    }

    fn of(&self, byte: u8) -> (u32, usize) {
        let bits = usize::from(LENGTHS[usize::from(byte)]);
        let group = self.groups[bits];
        let symbols = &self.symbols[group.start..][..group.count as usize];
        let offset = symbols.iter().take_while(|&&symbol| symbol != u16::from(byte)).count();
        (group.code + offset as u32, bits)
    }
}

/// The decoded bytes; `None` for a code that does not exist, EOS, or padding that is not the
/// fewest ones that fill the last byte.
pub(super) fn decode(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(bytes.len() * 8 / 5);
    let (mut code, mut bits) = (0_u32, 0);
    for bit in bytes.iter().flat_map(|byte| (0..8).rev().map(move |at| byte >> at & 1)) {
        code = code << 1 | u32::from(bit);
        bits += 1;
        match CODE.symbol(code, bits) {
            Some(EOS) => return None,
            Some(symbol) => {
                decoded.push(symbol as u8);
                (code, bits) = (0, 0);
            }
            None if bits >= MAX_BITS => return None,
            None => {}
        }
    }
    let padding_is_ones = bits < 8 && code == (1 << bits) - 1;
    padding_is_ones.then_some(decoded)
}

/// Overwrites the coded `value` with a legal authority of as many characters and as many bits.
///
/// Each character takes 5 to 8 bits, so it exists whenever the code is no longer than the plain
/// text; an encoder that made it longer gets no help.
pub(super) fn overwrite(coded: &mut [u8], value: &[u8]) {
    let bits: usize = value.iter().map(|&byte| usize::from(LENGTHS[usize::from(byte)])).sum();
    let Some(excess) = bits.checked_sub(5 * value.len()).filter(|&it| it <= 3 * value.len()) else {
        return;
    };
    let (eights, rest) = (excess / 3, excess % 3);
    let mut writer = BitWriter { bytes: coded, at: 0 };
    for at in 0..value.len() {
        let extra = match at {
            at if at < eights => 3,
            at if at == eights => rest,
            _ => 0,
        };
        writer.push(CODE.of(FILL[extra]));
    }
    // the padding stays: as many ones as before
}

struct BitWriter<'a> {
    bytes: &'a mut [u8],
    at: usize,
}

impl BitWriter<'_> {
    fn push(&mut self, (code, bits): (u32, usize)) {
        for bit in (0..bits).rev() {
            let mask = 0x80 >> (self.at % 8);
            if let Some(byte) = self.bytes.get_mut(self.at / 8) {
                *byte = if code >> bit & 1 == 1 { *byte | mask } else { *byte & !mask };
            }
            self.at += 1;
        }
    }
}

/// The code of `value`, padded.
#[cfg(test)]
pub(super) fn encode(value: &[u8]) -> Vec<u8> {
    let bits: usize = value.iter().map(|&byte| usize::from(LENGTHS[usize::from(byte)])).sum();
    let mut bytes = vec![0xff; bits.div_ceil(8)];
    let mut writer = BitWriter { bytes: &mut bytes, at: 0 };
    value.iter().for_each(|&byte| writer.push(CODE.of(byte)));
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RFC 7541 §C.4 and §C.6.
    #[test]
    fn the_examples_of_the_rfc() {
        for (text, coded) in [
            ("www.example.com", "f1e3c2e5f23a6ba0ab90f4ff"),
            ("no-cache", "a8eb10649cbf"),
            ("custom-key", "25a849e95ba97d7f"),
            ("Mon, 21 Oct 2013 20:13:21 GMT", "d07abe941054d444a8200595040b8166e082a62d1bff"),
            (
                "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1",
                "94e7821dd7f2e6c7b335dfdfcd5b3960d5af27087f3672c1ab270fb5291f9587316065c003ed4ee5b1063d5007",
            ),
        ] {
            assert_eq!(hex::encode(encode(text.as_bytes())), coded);
            assert_eq!(decode(&hex::decode(coded).unwrap()).unwrap(), text.as_bytes());
        }
    }

    #[test]
    fn every_byte_has_a_code() {
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(decode(&encode(&all)).unwrap(), all);
    }

    proptest! {
        #[test]
        fn decoding_never_panics(bytes: Vec<u8>) {
            if let Some(value) = decode(&bytes) {
                prop_assert_eq!(encode(&value), bytes);
            }
        }

        #[test]
        fn the_replacement_has_the_same_lengths_and_is_legal(path in "[ -~]{1,200}") {
            let mut other = encode(path.as_bytes());
            overwrite(&mut other, path.as_bytes());
            let bits: usize = path.bytes().map(|byte| usize::from(LENGTHS[usize::from(byte)])).sum();
            if bits > 8 * path.len() {
                return Ok(());
            }
            let value = decode(&other).expect("still a Huffman code");
            prop_assert_eq!(value.len(), path.len());
            prop_assert!(http::uri::Authority::try_from(value.as_slice()).is_ok());
        }
    }
}
