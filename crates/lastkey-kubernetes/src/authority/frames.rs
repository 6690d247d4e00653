//! Follows the frames of one client (RFC 9113 §4, §6) and gives each header block to HPACK.

use std::ops::Range;

use super::hpack::Tracker;

/// The most bytes held back: one header block with its frame headers. An apiserver's takes some
/// hundred; `h2` refuses what is anywhere near.
pub const MAX_HELD: usize = 64 << 10;

/// The most frames in a row that are neither a request's head nor its data. An apiserver sends a
/// handful with each request.
pub const MAX_CONTROL: u32 = 1000;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEAD: usize = 9;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PUSH_PROMISE: u8 = 5;
const CONTINUATION: u8 = 9;

const END_HEADERS: u8 = 0x04;
const PADDED: u8 = 0x08;
const PRIORITY: u8 = 0x20;

/// Passes on a client's bytes, with illegal authorities replaced; no I/O of its own.
///
/// Whatever is pushed comes out again with the same length, in the same order. Bytes of a header
/// block come out only once the block is complete.
#[derive(Debug)]
pub struct FrameFilter {
    state: State,
    /// The frame header, or the header block so far with its frame headers.
    held: Vec<u8>,
    /// Where in `held` the current frame begins.
    frame_start: usize,
    /// Where in `held` the parts of the header block lie.
    fragments: Vec<Range<usize>>,
    /// Where a block is put together; what it is left with means nothing.
    block: Vec<u8>,
    hpack: Tracker,
    has_request: bool,
    /// Frames since the last head that serve no request.
    control: u32,
    /// A head was larger than any may be.
    is_oversized: bool,
}

#[derive(Debug, Clone, Copy)]
enum State {
    /// So many bytes of the preface have come.
    Preface(usize),
    /// Within a frame header; in a header block, only its continuation may follow.
    Head { in_block: bool },
    /// So many bytes are left of a frame that is none of our business.
    Opaque(usize),
    /// So many bytes are left of a frame of a header block.
    Block { left: usize, frame: Frame },
    /// Not HTTP/2, or not to be followed: everything passes.
    GivenUp,
}

#[derive(Debug, Clone, Copy)]
struct Frame {
    length: usize,
    kind: u8,
    flags: u8,
}

impl Frame {
    fn parse(head: &[u8]) -> Option<Self> {
        let &[a, b, c, kind, flags, ..] = head else { return None };
        Some(Self { length: u32::from_be_bytes([0, a, b, c]) as usize, kind, flags })
    }

    fn has(self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// The bytes are not HTTP/2 as we know it.
struct Lost;

impl Default for FrameFilter {
    fn default() -> Self {
        Self::new()
    }
}

impl FrameFilter {
    /// Expects the connection preface first.
    pub fn new() -> Self {
        Self {
            state: State::Preface(0),
            held: Vec::new(),
            frame_start: 0,
            fragments: Vec::new(),
            block: Vec::new(),
            hpack: Tracker::new(),
            has_request: false,
            control: 0,
            is_oversized: false,
        }
    }

    /// Takes bytes in, and appends to `out` those that may go on.
    pub fn push(&mut self, mut input: &[u8], out: &mut Vec<u8>) {
        while !input.is_empty() {
            input = match self.step(input, out) {
                Ok(rest) => rest,
                Err((Lost, rest)) => {
                    self.state = State::GivenUp;
                    self.release(out);
                    rest
                }
            };
        }
    }

    /// The connection has ended: appends what is still held, unchanged.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        self.state = State::GivenUp;
        self.release(out);
    }

    /// How many bytes are held back.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// Whether the head of a request has come, whole.
    pub fn has_request(&self) -> bool {
        self.has_request
    }

    /// Whether the client sends what no honest one does, and too much of it.
    pub fn is_flood(&self) -> bool {
        self.is_oversized || self.control > MAX_CONTROL
    }

    /// Consumes at least one byte.
    fn step<'a>(
        &mut self,
        input: &'a [u8],
        out: &mut Vec<u8>,
    ) -> Result<&'a [u8], (Lost, &'a [u8])> {
        match self.state {
            State::GivenUp => {
                out.extend_from_slice(input);
                Ok(&[])
            }
            State::Preface(seen) => {
                let (now, rest) = split(input, PREFACE.len() - seen);
                out.extend_from_slice(now);
                let end = seen + now.len();
                self.state = match end == PREFACE.len() {
                    true => State::Head { in_block: false },
                    false => State::Preface(end),
                };
                if PREFACE[seen..end] == *now { Ok(rest) } else { Err((Lost, rest)) }
            }
            State::Opaque(left) => {
                let (now, rest) = split(input, left);
                out.extend_from_slice(now);
                self.state = match left - now.len() {
                    0 => State::Head { in_block: false },
                    left => State::Opaque(left),
                };
                Ok(rest)
            }
            State::Head { in_block } => {
                let missing = HEAD - (self.held.len() - self.frame_start);
                let (now, rest) = split(input, missing);
                self.held.extend_from_slice(now);
                let done = if now.len() == missing { self.head(in_block, out) } else { Ok(()) };
                done.map_or_else(|lost| Err((lost, rest)), |()| Ok(rest))
            }
            State::Block { left, frame } => {
                let (now, rest) = split(input, left);
                self.held.extend_from_slice(now);
                let done = match left - now.len() {
                    0 => self.payload(frame, out),
                    left => {
                        self.state = State::Block { left, frame };
                        Ok(())
                    }
                };
                done.map_or_else(|lost| Err((lost, rest)), |()| Ok(rest))
            }
        }
    }

    /// A frame header is complete.
    fn head(&mut self, in_block: bool, out: &mut Vec<u8>) -> Result<(), Lost> {
        let frame = Frame::parse(&self.held[self.frame_start..]).ok_or(Lost)?;
        let of_block = match frame.kind {
            HEADERS => !in_block,
            CONTINUATION => in_block,
            _ => false,
        };
        if of_block {
            return self.block_frame(frame, out);
        }
        if frame.kind != DATA || frame.length == 0 {
            self.control = self.control.saturating_add(1);
        }
        // a client may send neither of these, and only a continuation within a block
        if in_block || matches!(frame.kind, CONTINUATION | PUSH_PROMISE) {
            return Err(Lost);
        }
        self.release(out);
        self.state = match frame.length {
            0 => State::Head { in_block: false },
            left => State::Opaque(left),
        };
        Ok(())
    }

    fn block_frame(&mut self, frame: Frame, out: &mut Vec<u8>) -> Result<(), Lost> {
        if self.held.len() + frame.length > MAX_HELD {
            self.is_oversized = true;
            return Err(Lost);
        }
        match frame.length {
            0 => self.payload(frame, out),
            left => {
                self.state = State::Block { left, frame };
                Ok(())
            }
        }
    }

    /// The payload of a frame of a header block is complete.
    fn payload(&mut self, frame: Frame, out: &mut Vec<u8>) -> Result<(), Lost> {
        let fragment = self.fragment(frame).ok_or(Lost)?;
        self.fragments.push(fragment);
        self.frame_start = self.held.len();
        let complete = frame.has(END_HEADERS);
        if complete {
            self.has_request = true;
            self.control = 0;
            self.rewrite()?;
            self.release(out);
        }
        self.state = State::Head { in_block: !complete };
        Ok(())
    }

    /// What is left of the payload without padding and priority; `None` if they do not fit in.
    fn fragment(&self, frame: Frame) -> Option<Range<usize>> {
        let (mut start, mut end) = (self.frame_start + HEAD, self.held.len());
        if frame.kind == HEADERS {
            if frame.has(PADDED) {
                let padding = usize::from(*self.held.get(start)?);
                start += 1;
                end = end.checked_sub(padding)?;
            }
            if frame.has(PRIORITY) {
                start += 5;
            }
        }
        (start <= end).then_some(start..end)
    }

    /// Rewrites the block that `held` is; nothing changes in it unless all of it is understood.
    fn rewrite(&mut self) -> Result<(), Lost> {
        self.block.clear();
        for fragment in &self.fragments {
            self.block.extend_from_slice(&self.held[fragment.clone()]);
        }
        self.hpack.rewrite(&mut self.block).map_err(|_| Lost)?;
        let mut rest = self.block.as_slice();
        for fragment in &self.fragments {
            let (part, after) = rest.split_at(fragment.len());
            self.held[fragment.clone()].copy_from_slice(part);
            rest = after;
        }
        Ok(())
    }

    fn release(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.held);
        self.fragments.clear();
        self.frame_start = 0;
    }
}

fn split(input: &[u8], at: usize) -> (&[u8], &[u8]) {
    input.split_at(at.min(input.len()))
}
