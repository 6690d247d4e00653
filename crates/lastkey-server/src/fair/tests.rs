use std::time::Instant;

use super::*;

fn places(requests: usize, queue: usize, patience: u64) -> Places {
    let patience = Duration::from_millis(patience);
    Places::new(&Limits { requests, queue, patience, ..Limits::default() })
}

async fn settle() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn who_is_alone_has_everything() {
    let places = places(4, 4, 1000);
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(places.enter(Share(1)).await.unwrap());
    }
    assert_eq!(places.load(), (4, 0));
    held.clear();
    assert_eq!(places.load(), (0, 0));
}

#[tokio::test]
async fn a_free_place_goes_to_who_holds_least() {
    let places = places(4, 100, 5000);
    let mut greedy = Vec::new();
    for _ in 0..4 {
        greedy.push(places.enter(Share(1)).await.unwrap());
    }
    // The greedy one waits first, and for more than anybody else.
    let (sender, mut entered) = tokio::sync::mpsc::unbounded_channel();
    for share in [1, 1, 1, 1, 1, 2, 2, 2, 3] {
        let (places, sender) = (places.clone(), sender.clone());
        tokio::spawn(async move {
            let place = places.enter(Share(share)).await.unwrap();
            sender.send((share, place)).unwrap();
        });
        settle().await;
    }
    assert_eq!(places.load(), (4, 9));
    // As its places come free, the others get them first, until all hold alike.
    let mut order = Vec::new();
    let mut held = Vec::new();
    for _ in 0..3 {
        greedy.pop();
        let (share, place) = entered.recv().await.unwrap();
        order.push(share);
        held.push(place);
    }
    assert_eq!(order, [2, 3, 1], "of equal ones, who came first");
    // 1 holds two by now, 2 holds one: whoever leaves, 2 is next.
    held.remove(1);
    assert_eq!(entered.recv().await.unwrap().0, 2);
}

#[tokio::test]
async fn the_queue_is_bounded_and_the_longest_line_gives_way() {
    let places = places(1, 3, 10_000);
    let first = places.enter(Share(1)).await.unwrap();
    let enter = |share: usize| {
        let places = places.clone();
        tokio::spawn(async move { places.enter(Share(share)).await.map(|_| ()) })
    };
    let mut greedy = Vec::new();
    for _ in 0..3 {
        greedy.push(enter(1));
        settle().await;
    }
    assert_eq!(enter(1).await.unwrap(), Err(NoPlace::Full));
    let other = enter(2);
    settle().await;
    assert_eq!(places.load(), (1, 3));
    assert_eq!(greedy.pop().unwrap().await.unwrap(), Err(NoPlace::Displaced));
    // Two against one: a second one of 2 would only trade places.
    assert_eq!(enter(2).await.unwrap(), Err(NoPlace::Full));
    drop(first);
    other.await.unwrap().unwrap();
    for waiter in greedy {
        waiter.await.unwrap().unwrap();
    }
    assert_eq!(places.load(), (0, 0));
}

#[tokio::test]
async fn patience_ends_and_nothing_leaks() {
    let places = places(1, 10, 50);
    let first = places.enter(Share(1)).await.unwrap();
    let started = Instant::now();
    assert_eq!(places.enter(Share(2)).await.map(|_| ()), Err(NoPlace::Late));
    assert!(started.elapsed() >= Duration::from_millis(50));
    assert_eq!(places.load(), (1, 0));
    drop(first);
    // Somebody who hangs up while he waits.
    let places = self::places(1, 10, 60_000);
    let first = places.enter(Share(1)).await.unwrap();
    let gone = tokio::time::timeout(Duration::from_millis(5), places.enter(Share(2))).await;
    assert!(gone.is_err());
    assert_eq!(places.load(), (1, 0));
    drop(first);
    assert_eq!(places.load(), (0, 0));
    assert!(places.0.queue.lock().lines.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_place_is_lost_or_given_twice() {
    let places = places(3, 1000, 5_000);
    let inside = Arc::new(AtomicUsize::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..64_usize {
        let (places, inside) = (places.clone(), Arc::clone(&inside));
        tasks.spawn(async move {
            for round in 0..200_usize {
                if (task + round).is_multiple_of(7) {
                    // Callers who hang up at any moment.
                    let short = Duration::from_micros(20);
                    let _ = tokio::time::timeout(short, places.enter(Share(task % 5))).await;
                    continue;
                }
                let place = places.enter(Share(task % 5)).await.unwrap();
                assert!(inside.fetch_add(1, Ordering::SeqCst) < 3);
                tokio::task::yield_now().await;
                inside.fetch_sub(1, Ordering::SeqCst);
                drop(place);
            }
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
    assert_eq!(places.load(), (0, 0));
    assert!(places.0.held.iter().all(|held| held.load(Ordering::SeqCst) == 0));
}

#[test]
fn principals_have_shares_of_their_own() {
    let places = places(1, 1, 1);
    let root = |id: &str| places.share(&Principal::Root { access_key_id: id.into() });
    assert_eq!(root("LK1"), root("LK1"));
    let shares: std::collections::HashSet<_> = (0..64).map(|n| root(&format!("LK{n}"))).collect();
    assert!(shares.len() > 48, "{} of 64", shares.len());
}

#[test]
fn alone_in_the_waiting_room_is_not_all_of_it() {
    let room = WaitingRoom::new(&Limits { waiting: 90, ..Limits::default() });
    let mut seats = Vec::new();
    while let Some(seat) = room.enter(Share(1)) {
        seats.push(seat);
    }
    assert_eq!(seats.len(), 60);
    let other: Vec<_> = std::iter::from_fn(|| room.enter(Share(2))).collect();
    assert_eq!(other.len(), 20);
    drop((seats, other));
    assert_eq!(room.0.taken.load(Ordering::SeqCst), 0);
    assert!(room.enter(Share(3)).is_some());
}
