//! All mutants of a file woven into its source, each behind its number.
//!
//! `a + b` becomes `(match crate::__mutants::at(&[7, 8]) { 7 => { a - b } 8 => { a * b } _ => { a + b } })`,
//! a function begins with `if crate::__mutants::on(9) { return true; }`, and an arm that may be
//! missing has a guard. A changed expression has only the change it stands for, so that sources
//! grow with the number of mutants and no faster.

use std::ops::Range;

use proc_macro2::LineColumn;
use syn::{
    BinOp, Expr,
    spanned::Spanned,
    visit::{self, Visit},
};

use crate::{
    Error,
    list::{Genre, Mutant, Position},
};

/// What each woven crate has at its end: which mutant is on, and which were reached.
pub(crate) const HOOK: &str = include_str!("hook.rs.txt");

/// A mutant with its number, from 1.
#[derive(Clone, Copy)]
pub(crate) struct Numbered<'a> {
    pub(crate) number: u32,
    pub(crate) mutant: &'a Mutant,
}

/// A source with its mutants in.
pub(crate) struct Woven {
    pub(crate) text: String,
    /// Where in `text` the mutants are, for the compiler's complaints.
    pub(crate) places: Vec<Place>,
    /// Those that there was a place for.
    pub(crate) numbers: Vec<u32>,
    /// Those that no compiler takes.
    pub(crate) refused: Vec<u32>,
}

/// Lines that belong to mutants.
pub(crate) struct Place {
    /// From 1.
    pub(crate) lines: Range<usize>,
    pub(crate) numbers: Vec<u32>,
    /// Whether this is what the mutant does, and not what is around it.
    pub(crate) own: bool,
}

/// Weaves `mutants`, all of them of this file, into `source`.
pub(crate) fn weave(source: &str, mutants: &[Numbered<'_>]) -> Result<Woven, syn::Error> {
    let file = syn::parse_file(source)?;
    let mut finder =
        Finder { mutants, wraps: Vec::new(), inserts: Vec::new(), refused: Vec::new() };
    finder.visit_file(&file);
    let Finder { mut wraps, mut inserts, refused, .. } = finder;
    // Outer before inner.
    wraps.sort_by_key(|wrap| (wrap.range.start, usize::MAX - wrap.range.end));
    inserts.sort_by_key(|insert| insert.at);
    let mut numbers: Vec<u32> = wraps.iter().flat_map(|wrap| wrap.numbers.clone()).collect();
    numbers.extend(inserts.iter().map(|insert| insert.number));
    let mut writer = Writer {
        source,
        lines: line_starts(source),
        mutants,
        inserts: &inserts,
        text: String::new(),
        line: 1,
        places: Vec::new(),
    };
    writer.piece(0..source.len(), &wraps);
    Ok(Woven { text: writer.text, places: writer.places, numbers, refused })
}

/// The source with this mutant only.
pub(crate) fn alone(source: &str, mutant: &Mutant) -> String {
    splice(source, &line_starts(source), 0..source.len(), mutant)
}

/// The source in `range` with one change.
fn splice(source: &str, lines: &[usize], range: Range<usize>, mutant: &Mutant) -> String {
    let byte = |at: Position| {
        let start = lines.get(at.line - 1).copied().unwrap_or(source.len());
        let column = source[start..].char_indices().nth(at.column - 1);
        start + column.map_or(source.len() - start, |(byte, _)| byte)
    };
    let (start, end) = (byte(mutant.span.start), byte(mutant.span.end));
    let (before, after) = (&source[range.start..start], &source[end..range.end]);
    format!("{before} {} {after}", mutant.replacement)
}

/// An error of [`weave`] with the file's name.
pub(crate) fn syntax(file: &str) -> impl FnOnce(syn::Error) -> Error {
    move |source| Error::Syntax { file: file.to_owned(), source }
}

/// An expression, and the mutants that change it.
struct Wrap {
    range: Range<usize>,
    numbers: Vec<u32>,
}

/// What is put between two bytes.
struct Insert {
    at: usize,
    number: u32,
    text: String,
}

struct Finder<'a> {
    mutants: &'a [Numbered<'a>],
    wraps: Vec<Wrap>,
    inserts: Vec<Insert>,
    refused: Vec<u32>,
}

impl Finder<'_> {
    fn at(&self, genre: Genre, place: LineColumn) -> Vec<Numbered<'_>> {
        let wanted = Position { line: place.line, column: place.column + 1 };
        let fits = |m: &&Numbered<'_>| m.mutant.genre == genre && m.mutant.span.start == wanted;
        self.mutants.iter().filter(fits).copied().collect()
    }

    fn wrap(&mut self, whole: &impl Spanned, genre: Genre, places: &[LineColumn]) {
        let numbers: Vec<u32> =
            places.iter().flat_map(|p| self.at(genre, *p)).map(|m| m.number).collect();
        if !numbers.is_empty() {
            self.wraps.push(Wrap { range: whole.span().byte_range(), numbers });
        }
    }

    fn function(&mut self, signature: &syn::Signature, block: &syn::Block) {
        let Some(first) = block.stmts.first() else { return };
        if matches!(&signature.output, syn::ReturnType::Type(_, of) if has_impl(of)) {
            return; // what is answered must have one type: cargo-mutants' own builds can tell
        }
        let open = block.brace_token.span.open().byte_range().end;
        let inserts: Vec<Insert> = self
            .at(Genre::FnValue, first.span().start())
            .iter()
            .map(|m| Insert {
                at: open,
                number: m.number,
                text: format!(
                    "if crate::__mutants::on({}) {{ return {}; }}",
                    m.number, m.mutant.replacement
                ),
            })
            .collect();
        self.inserts.extend(inserts);
    }
}

/// Constants are left out: what says which mutant is on is no constant.
impl<'ast> Visit<'ast> for Finder<'_> {
    fn visit_item_const(&mut self, _: &'ast syn::ItemConst) {}
    fn visit_item_static(&mut self, _: &'ast syn::ItemStatic) {}
    fn visit_impl_item_const(&mut self, _: &'ast syn::ImplItemConst) {}
    fn visit_trait_item_const(&mut self, _: &'ast syn::TraitItemConst) {}
    fn visit_expr_const(&mut self, _: &'ast syn::ExprConst) {}
    fn visit_type(&mut self, _: &'ast syn::Type) {}
    fn visit_generic_argument(&mut self, _: &'ast syn::GenericArgument) {}
    fn visit_variant(&mut self, _: &'ast syn::Variant) {}
    fn visit_pat(&mut self, _: &'ast syn::Pat) {}

    fn visit_expr_repeat(&mut self, node: &'ast syn::ExprRepeat) {
        self.visit_expr(&node.expr);
    }

    fn visit_item_fn(&mut self, node: &'ast syn::ItemFn) {
        if node.sig.constness.is_none() {
            self.function(&node.sig, &node.block);
            visit::visit_item_fn(self, node);
        }
    }

    fn visit_impl_item_fn(&mut self, node: &'ast syn::ImplItemFn) {
        if node.sig.constness.is_none() {
            self.function(&node.sig, &node.block);
            visit::visit_impl_item_fn(self, node);
        }
    }

    fn visit_trait_item_fn(&mut self, node: &'ast syn::TraitItemFn) {
        if let Some(block) = &node.default {
            self.function(&node.sig, block);
            visit::visit_trait_item_fn(self, node);
        }
    }

    fn visit_expr_binary(&mut self, node: &'ast syn::ExprBinary) {
        if is_chain(node) {
            let here = self.at(Genre::BinaryOperator, node.op.span().start());
            let or = here.iter().filter(|m| m.mutant.replacement == "||").map(|m| m.number);
            let or: Vec<u32> = or.collect();
            self.refused.extend(or);
        } else {
            self.wrap(node, Genre::BinaryOperator, &[node.op.span().start()]);
        }
        visit::visit_expr_binary(self, node);
    }

    fn visit_expr_unary(&mut self, node: &'ast syn::ExprUnary) {
        self.wrap(node, Genre::UnaryOperator, &[node.op.span().start()]);
        visit::visit_expr_unary(self, node);
    }

    fn visit_expr_struct(&mut self, node: &'ast syn::ExprStruct) {
        let fields: Vec<LineColumn> = node.fields.iter().map(|f| f.span().start()).collect();
        self.wrap(node, Genre::StructField, &fields);
        visit::visit_expr_struct(self, node);
    }

    fn visit_arm(&mut self, node: &'ast syn::Arm) {
        let gone = self.at(Genre::MatchArm, node.span().start()).first().map(|m| m.number);
        let end = node.pat.span().byte_range().end;
        match (&node.guard, gone) {
            (Some((_, guard)), _) => {
                self.wrap(&**guard, Genre::MatchArmGuard, &[guard.span().start()]);
            }
            (None, Some(number)) => {
                let text = format!("if !crate::__mutants::on({number})");
                self.inserts.push(Insert { at: end, number, text });
            }
            (None, None) => {}
        }
        visit::visit_arm(self, node);
    }
}

/// `let` among what `&&` joins.
fn is_chain(node: &syn::ExprBinary) -> bool {
    let has_let = |side: &Expr| match side {
        Expr::Let(_) => true,
        Expr::Binary(inner) => is_chain(inner),
        _ => false,
    };
    matches!(node.op, BinOp::And(_)) && (has_let(&node.left) || has_let(&node.right))
}

/// Whether `impl Trait` is in a type.
fn has_impl(of: &syn::Type) -> bool {
    struct Looks(bool);
    impl<'ast> Visit<'ast> for Looks {
        fn visit_type_impl_trait(&mut self, _: &'ast syn::TypeImplTrait) {
            self.0 = true;
        }
    }
    let mut looks = Looks(false);
    looks.visit_type(of);
    looks.0
}

fn line_starts(source: &str) -> Vec<usize> {
    std::iter::once(0).chain(source.match_indices('\n').map(|(at, _)| at + 1)).collect()
}

struct Writer<'a> {
    source: &'a str,
    lines: Vec<usize>,
    mutants: &'a [Numbered<'a>],
    inserts: &'a [Insert],
    text: String,
    line: usize,
    places: Vec<Place>,
}

impl Writer<'_> {
    fn piece(&mut self, range: Range<usize>, mut wraps: &[Wrap]) {
        let mut at = range.start;
        while let Some((wrap, rest)) = wraps.split_first() {
            let inner = rest.iter().take_while(|w| w.range.start < wrap.range.end).count();
            self.plain(at..wrap.range.start);
            self.wrap(wrap, &rest[..inner]);
            at = wrap.range.end;
            wraps = &rest[inner..];
        }
        self.plain(at..range.end);
    }

    /// Source as it is, but for what is inserted.
    fn plain(&mut self, range: Range<usize>) {
        let mut at = range.start;
        for insert in self.inserts.iter().filter(|insert| range.contains(&insert.at)) {
            self.push(&self.source[at..insert.at]);
            self.own(vec![insert.number], true, |w| w.push(&insert.text));
            at = insert.at;
        }
        self.push(&self.source[at..range.end]);
    }

    fn wrap(&mut self, wrap: &Wrap, inner: &[Wrap]) {
        self.own(wrap.numbers.clone(), false, |w| {
            w.push(&format!("(match crate::__mutants::at(&{:?}) {{", wrap.numbers));
            for number in &wrap.numbers {
                let changed = w.changed(wrap.range.clone(), *number);
                w.own(vec![*number], true, |w| w.push(&format!("{number} => {{ {changed} }}")));
            }
            w.push("_ => { ");
            w.piece(wrap.range.clone(), inner);
            w.push(" }\n})");
        });
    }

    /// The source in `range` with one change.
    fn changed(&self, range: Range<usize>, number: u32) -> String {
        let Some(found) = self.mutants.iter().find(|m| m.number == number) else {
            return String::new();
        };
        splice(self.source, &self.lines, range, found.mutant)
    }

    /// What `write` writes has lines to itself, which belong to `numbers`.
    fn own(&mut self, numbers: Vec<u32>, own: bool, write: impl FnOnce(&mut Self)) {
        self.push("\n");
        let start = self.line;
        write(self);
        self.places.push(Place { lines: start..self.line + 1, numbers, own });
        self.push("\n");
    }

    fn push(&mut self, text: &str) {
        self.line += text.matches('\n').count();
        self.text.push_str(text);
    }
}

#[cfg(test)]
mod tests;
