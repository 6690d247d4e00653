use super::*;
use crate::list::Span;

fn mutant(genre: Genre, source: &str, changed: &str, replacement: &str) -> Mutant {
    let place = |byte: usize| {
        let before = &source[..byte];
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        Position { line, column }
    };
    let start = source.find(changed).unwrap();
    Mutant {
        name: replacement.to_owned(),
        file: "a.rs".to_owned(),
        genre,
        replacement: replacement.to_owned(),
        span: Span { start: place(start), end: place(start + changed.len()) },
    }
}

/// The woven source with every run of white space as one space.
fn woven(source: &str, mutants: &[Mutant]) -> (String, Vec<u32>) {
    let numbered: Vec<Numbered<'_>> =
        (1..).zip(mutants).map(|(number, mutant)| Numbered { number, mutant }).collect();
    let woven = weave(source, &numbered).unwrap();
    // What is woven in is Rust.
    syn::parse_file(&woven.text).unwrap();
    let words: Vec<&str> = woven.text.split_whitespace().collect();
    (words.join(" "), woven.numbers)
}

#[test]
fn operators_are_chosen_by_number_and_their_operands_changed_on_their_own() {
    let source = "fn f(ü: u8) -> bool { ü + 1 == 2 }";
    let all = [
        mutant(Genre::BinaryOperator, source, "==", "!="),
        mutant(Genre::BinaryOperator, source, "+", "-"),
        mutant(Genre::BinaryOperator, source, "+", "*"),
    ];
    let expected = "fn f(ü: u8) -> bool { \
        (match crate::__mutants::at(&[1]) { 1 => { ü + 1 != 2 } _ => { \
        (match crate::__mutants::at(&[2, 3]) { 2 => { ü - 1 } 3 => { ü * 1 } _ => { ü + 1 } }) \
        == 2 } }) }";
    assert_eq!(woven(source, &all), (expected.to_owned(), vec![1, 2, 3]));
}

#[test]
fn functions_answer_at_once_and_arms_and_fields_are_missing() {
    let source =
        "fn f(a: u8) -> S { match a { 1 => S { x: 1, ..s() }, _ if !b() => s(), _ => s() } }";
    let all = [
        mutant(Genre::FnValue, source, "match a", "Default::default()"),
        mutant(Genre::MatchArm, source, "1 =>", ""),
        mutant(Genre::StructField, source, "x: 1,", ""),
        mutant(Genre::MatchArmGuard, source, "!b()", "true"),
        mutant(Genre::UnaryOperator, source, "!", ""),
    ];
    let (text, numbers) = woven(source, &all);
    for part in [
        "if crate::__mutants::on(1) { return Default::default(); }",
        "1 if !crate::__mutants::on(2) =>",
        "3 => { S { ..s() } } _ => { S { x: 1, ..s() } }",
        "4 => { true }",
        "5 => { b() } _ => { !b() }",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert_eq!(numbers.len(), 5);
}

#[test]
fn what_has_to_be_constant_or_is_a_chain_is_left_out() {
    for (source, changed) in [
        ("const A: usize = 1 + 2;", "+"),
        ("const fn f() -> usize { 1 + 2 }", "+"),
        ("fn f() -> [u8; 1 + 2] { [0; 1 + 2] }", "+"),
        ("fn f() { if let Some(a) = b() && a {} }", "&&"),
    ] {
        let all = [mutant(Genre::BinaryOperator, source, changed, "-")];
        assert_eq!(woven(source, &all), (source.to_owned(), vec![]), "{source}");
    }
    let source = "fn f() { if let Some(a) = b() && a {} }";
    let or = mutant(Genre::BinaryOperator, source, "&&", "||");
    let numbered = [Numbered { number: 3, mutant: &or }];
    assert_eq!(weave(source, &numbered).unwrap().refused, [3], "no compiler takes it");
    let source = "fn f() -> impl Iterator<Item = u8> { x }";
    assert!(woven(source, &[mutant(Genre::FnValue, source, "x", "once(1)")]).1.is_empty());
}

#[test]
fn lines_belong_to_the_mutant_that_they_were_made_for() {
    let source = "fn f() -> bool {\n    a()\n        && b()\n}\n";
    let all = [mutant(Genre::BinaryOperator, source, "&&", "||")];
    let numbered = [Numbered { number: 7, mutant: &all[0] }];
    let woven = weave(source, &numbered).unwrap();
    let own = woven.places.iter().find(|place| place.own).unwrap();
    let lines: Vec<&str> = woven.text.lines().collect();
    let there = lines[own.lines.start - 1..own.lines.end - 1].join(" ");
    assert!(there.contains("||") && !there.contains("&&"), "{there}");
    assert_eq!(own.numbers, [7]);
}
