//! What a call takes from the heap, in the plugin alone: a bound that a large future or buffer for each
//! call would break. Freed memory is zeroed, so that each byte costs twice.

#![allow(clippy::unwrap_used)] // clippy sees no test in the helpers below
#![allow(unsafe_code, reason = "GlobalAlloc is an unsafe trait; every call is handed on unchanged")]

mod support;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use lastkey_kubernetes::{
    plugin::{MemoryConfig, Metrics},
    proto::v2::{
        DecryptRequest, EncryptRequest, StatusRequest,
        key_management_service_client::KeyManagementServiceClient,
    },
};
use support::{
    FakeKms, Running, eventually,
    fake::{FakeServer, Pki},
};
use tokio::sync::oneshot;

/// The system's allocator, which counts what the plugin's thread takes.
struct Counting;

#[global_allocator]
static HEAP: Counting = Counting;

static TAKEN: AtomicU64 = AtomicU64::new(0);
static BYTES: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static IS_PLUGIN: Cell<bool> = const { Cell::new(false) };
}

fn note(bytes: usize) {
    if IS_PLUGIN.try_with(Cell::get).unwrap_or(false) {
        TAKEN.fetch_add(1, Relaxed);
        BYTES.fetch_add(bytes as u64, Relaxed);
    }
}

// SAFETY: every call goes to `System` with the arguments it came with.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: the caller keeps `alloc`'s contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(size);
        // SAFETY: the caller keeps `realloc`'s contract.
        unsafe { System.realloc(old, layout, size) }
    }

    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps `dealloc`'s contract.
        unsafe { System.dealloc(old, layout) }
    }
}

/// A plugin with a thread of its own.
struct Plugin {
    socket: PathBuf,
    metrics: Arc<Metrics>,
    _stop: oneshot::Sender<()>,
}

impl Plugin {
    /// Its server runs on the caller's thread, and does not count.
    async fn start(directory: PathBuf) -> Self {
        let (kms, pki) = (FakeKms::new(), Pki::new());
        let server = FakeServer::start(&pki, kms.handler()).await;
        let (tell, told) = oneshot::channel();
        std::thread::spawn(move || {
            IS_PLUGIN.set(true);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                let memory = MemoryConfig { entries: 100, directory };
                let mut plugin =
                    Running::start_before((pki, server), kms, |it| it.memory = Some(memory));
                plugin.ready().await;
                let (stop, stopped) = oneshot::channel();
                let (socket, metrics) = (plugin.socket.clone(), plugin.metrics.clone());
                assert!(tell.send(Self { socket, metrics, _stop: stop }).is_ok());
                let _ = stopped.await;
            });
        });
        told.await.unwrap()
    }

    fn answers(&self) -> u64 {
        self.metrics.memory().answers().0
    }
}

/// The least that one of many calls took, in allocations and in bytes: whatever else the plugin did
/// meanwhile only adds to it.
async fn least(mut call: impl AsyncFnMut()) -> (u64, u64) {
    let (mut taken, mut bytes) = (u64::MAX, u64::MAX);
    for _ in 0..100 {
        let before = (TAKEN.load(Relaxed), BYTES.load(Relaxed));
        call().await;
        taken = taken.min(TAKEN.load(Relaxed) - before.0);
        bytes = bytes.min(BYTES.load(Relaxed) - before.1);
    }
    (taken, bytes)
}

#[tokio::test]
async fn a_call_takes_little_of_the_heap() {
    let state = tempfile::tempdir().unwrap();
    let plugin = Plugin::start(state.path().to_owned()).await;
    let channel = support::connect(plugin.socket.clone()).await;
    let kms = KeyManagementServiceClient::new(channel);
    let status = async || kms.clone().status(StatusRequest {}).await.unwrap().into_inner();
    assert_eq!(status().await.healthz, "ok");
    let uid = "b3a4ee71-6a3e-4b62-8f9b-2d9f6a1c7e55".to_owned();
    let encrypt = async || {
        let request = EncryptRequest { plaintext: vec![7; 32], uid: uid.clone() };
        kms.clone().encrypt(request).await.unwrap().into_inner()
    };
    let sealed = encrypt().await;
    let decrypt = async || {
        let request = DecryptRequest {
            ciphertext: sealed.ciphertext.clone(),
            uid: uid.clone(),
            key_id: sealed.key_id.clone(),
            annotations: sealed.annotations.clone(),
        };
        let answer = kms.clone().decrypt(request).await.unwrap();
        assert_eq!(answer.into_inner().plaintext, [7; 32]);
    };
    // the spool may have to be opened first
    let is_remembered = async || {
        decrypt().await;
        plugin.answers()
    };
    eventually(is_remembered, |count| *count > 0).await;

    let of_status = least(async || drop(status().await)).await;
    let before = plugin.answers();
    let of_decrypt = least(&decrypt).await;
    assert_eq!(plugin.answers(), before + 100, "all from memory");
    let of_encrypt = least(async || drop(encrypt().await)).await;
    println!(
        "allocations and bytes of a Status {of_status:?}, of a Decrypt from memory {of_decrypt:?}, \
         of an Encrypt {of_encrypt:?}"
    );
    assert!(of_status.0 <= 40 && of_status.1 <= 10 << 10, "a Status takes {of_status:?}");
    assert!(of_decrypt.0 <= 50 && of_decrypt.1 <= 13 << 10, "a Decrypt takes {of_decrypt:?}");
    assert!(of_encrypt.0 <= 95 && of_encrypt.1 <= 28 << 10, "an Encrypt takes {of_encrypt:?}");
}
