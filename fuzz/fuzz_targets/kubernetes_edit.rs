#![no_main]
//! An EncryptionConfiguration that is changed, in the stages of a change of providers and in ways
//! that nobody asked for: what comes out is one that is read again, says what was meant, and is not
//! changed any more by the same stage.

use lastkey_kubernetes::{
    encryption_config::{Draft, DraftRule, EncryptionConfiguration, Item, apply, readable},
    transition::{Goal, Stage, Target, next},
};
use libfuzzer_sys::fuzz_target;

const FRESH: &str = "qJf8Zz0uT3kV5x1mWb7yRc9dLh2nEo4sGpXaKiUvM6Q=";

// The first line says what is done, so that seeds can be read: a letter for the target, letters for
// changes by hand, and the resources it is for. The file follows.
fuzz_target!(|text: &str| {
    let Some((head, file)) = text.split_once('\n') else { return };
    let (letters, resources) = head.split_once(' ').unwrap_or((head, "secrets"));
    let resources: Vec<String> = resources.split(',').take(4).map(str::to_owned).collect();
    let text = (!file.is_empty()).then_some(file);
    by_hand(text, letters, &resources);
    by_stages(text, &Goal { resources, target: target(letters) });
});

fn target(letters: &str) -> Target {
    let kind = |kind: &str| Target::Local { kind: kind.to_owned() };
    match letters.as_bytes().first() {
        Some(b'c') => kind("aescbc"),
        Some(b'g') => kind("aesgcm"),
        Some(b's') => kind("secretbox"),
        Some(b'i') => Target::Identity,
        _ => {
            let (name, endpoint) = ("lastkey".to_owned(), "unix:///run/kms.sock".to_owned());
            Target::Kms { name, endpoint }
        }
    }
}

/// Into the target as an operator would get there. What cannot be done is refused.
fn by_stages(text: Option<&str>, goal: &Goal) {
    let mut file = text.map(str::to_owned);
    for stage in [Stage::Readable, Stage::Writing, Stage::Clean] {
        let Ok(config) = readable(file.as_deref()) else { return };
        let Ok(draft) = next(&config, goal, stage, &|_, _| false) else { return };
        let Some(new) = changed(file.as_deref(), &draft) else { return };
        let config = readable(Some(&new)).expect("it was read just now");
        if let Ok(again) = next(&config, goal, stage, &|_, _| false) {
            assert!(again.is_same_as(&config), "{stage:?} wants more:\n{new}\n{again:?}");
        }
        file = Some(new);
    }
}

fn by_hand(text: Option<&str>, letters: &str, resources: &[String]) {
    let Ok(config) = readable(text) else { return };
    let mut draft = as_it_is(&config);
    for letter in letters.bytes().skip(1).take(6) {
        change(&mut draft, letter, resources);
    }
    changed(text, &draft);
}

fn change(draft: &mut Draft, letter: u8, resources: &[String]) {
    let kept = |draft: &Draft| Some(draft.rules.first()?.providers.first()?.clone());
    let local = |kind: &str| Item::Local { kind: kind.to_owned() };
    match letter {
        b'r' => draft.rules.reverse(),
        b'p' => draft.rules.iter_mut().for_each(|rule| rule.providers.reverse()),
        b'd' => draft.rules.iter_mut().for_each(|rule| drop(rule.providers.pop())),
        b'x' => draft.rules.iter_mut().for_each(|rule| drop(rule.resources.pop())),
        b'n' => {
            let providers: Vec<Item> = kept(draft).into_iter().chain([local("aesgcm")]).collect();
            draft.rules.push(DraftRule { from: None, resources: resources.to_vec(), providers });
        }
        b'm' => {
            if let (Some(item), Some(last)) = (kept(draft), draft.rules.last_mut()) {
                last.providers.push(item);
            }
        }
        b'l' => draft.rules.iter_mut().for_each(|rule| rule.providers.push(local("secretbox"))),
        b'i' => draft.rules.iter_mut().for_each(|rule| rule.providers.push(Item::Identity)),
        _ => {}
    }
}

/// The file that a draft makes, if it makes one.
fn changed(text: Option<&str>, draft: &Draft) -> Option<String> {
    let edited = apply(text, draft, FRESH).ok()?;
    let config = readable(Some(&edited.text)).expect("what was written is taken");
    assert_eq!(config.rules.len(), draft.rules.len());
    for (rule, drafted) in config.rules.iter().zip(&draft.rules) {
        assert!(rule.resources.iter().map(|named| &named.name).eq(&drafted.resources));
        assert_eq!(rule.providers.len(), drafted.providers.len());
    }
    let same = apply(Some(&edited.text), &as_it_is(&config), FRESH).expect("nothing is changed");
    assert!(as_it_is(&config).is_same_as(&readable(Some(&same.text)).expect("nothing was")));
    Some(String::clone(&edited.text))
}

fn as_it_is(config: &EncryptionConfiguration) -> Draft {
    let rules = config.rules.iter().enumerate().map(|(index, rule)| DraftRule {
        from: Some(index),
        resources: rule.resources.iter().map(|named| named.name.clone()).collect(),
        providers: (0..rule.providers.len())
            .map(|provider| Item::Kept { rule: index, provider })
            .collect(),
    });
    Draft { rules: rules.collect() }
}
