use std::os::unix::fs::PermissionsExt as _;

use tempfile::TempDir;
use tokio::net::TcpStream;

use super::*;

const SOON: Duration = Duration::from_millis(200);

fn place() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nmi.sock");
    (folder, path)
}

fn anywhere() -> TcpListener {
    listen("127.0.0.1:0".parse().unwrap(), false).unwrap()
}

#[tokio::test]
async fn a_successor_gets_the_sockets_with_the_connections_that_wait_in_them() {
    let (_folder, path) = place();
    let (door, probe) = (anywhere(), anywhere());
    let (at, other) = (door.local_addr().unwrap(), probe.local_addr().unwrap());
    let listener = HandoverListener::open(&path).unwrap();
    let _waits = TcpStream::connect(at).await.unwrap();
    let old = async {
        let mut successor = listener.accept(&[&door, &probe]).await;
        assert!(successor.is_ready().await);
        drop((door, probe));
        successor.confirm_stopped().await;
        successor
    };
    let new = async {
        let mut inherited = Inheritance::ask(&path, Duration::ZERO).await;
        let door = inherited.listen(at, false).await.unwrap();
        let probe = inherited.listen(other, false).await.unwrap();
        let mut predecessor = inherited.predecessor().unwrap();
        predecessor.take_over().await;
        (door, probe, predecessor)
    };
    let (mut successor, (door, _probe, predecessor)) = tokio::join!(old, new);
    door.accept().unwrap();
    predecessor.release().await;
    assert_eq!(successor.ended().await, SuccessorEnd::Superseded);
}

#[tokio::test]
async fn a_successor_that_ends_is_told_from_one_that_is_ready() {
    let (_folder, path) = place();
    let listener = HandoverListener::open(&path).unwrap();
    let ask = Inheritance::ask(&path, Duration::ZERO);
    let (mut successor, inherited) = tokio::join!(listener.accept(&[]), ask);
    drop(inherited);
    assert!(!successor.is_ready().await);
    assert_eq!(successor.ended().await, SuccessorEnd::Died);
}

#[tokio::test]
async fn a_predecessor_that_ends_is_noticed() {
    let (_folder, path) = place();
    let listener = HandoverListener::open(&path).unwrap();
    let ask = Inheritance::ask(&path, Duration::ZERO);
    let (successor, inherited) = tokio::join!(listener.accept(&[]), ask);
    let mut predecessor = inherited.predecessor().unwrap();
    tokio::time::timeout(SOON, predecessor.ended())
        .await
        .unwrap_err();
    drop(successor);
    predecessor.ended().await;
    predecessor.take_over().await;
}

#[tokio::test]
async fn another_version_is_refused_and_the_port_waited_for() {
    let (_folder, path) = place();
    let listener = HandoverListener::open(&path).unwrap();
    let door = anywhere();
    let at = door.local_addr().unwrap();
    let old = async {
        let mut other = UnixStream::connect(&path).await.unwrap();
        other.write_all(&[VERSION + 1]).await.unwrap();
        other.read_u8().await.unwrap()
    };
    let sockets = [&door];
    tokio::select! {
        answer = old => assert_eq!(answer, REFUSED),
        _ = listener.accept(&sockets) => panic!("it was given the sockets"),
    }

    // One that speaks an older version answers as it likes.
    let older = async {
        let (mut stream, _) = listener.listener.accept().await.unwrap();
        stream.write_all(&[REFUSED]).await.unwrap();
    };
    let ask = Inheritance::ask(&path, Duration::from_secs(20));
    let ((), mut inherited) = tokio::join!(older, ask);
    assert!(inherited.predecessor.is_none());
    let free = async {
        tokio::task::yield_now().await;
        drop(door);
    };
    let (got, ()) = tokio::join!(inherited.listen(at, false), free);
    assert_eq!(got.unwrap().local_addr().unwrap(), at);
}

#[tokio::test]
async fn nobody_is_no_hindrance_and_a_port_in_use_is_an_error_in_the_end() {
    let (_folder, path) = place();
    // What is left of one that was killed.
    drop(HandoverListener::open(&path).unwrap());
    let mut inherited = Inheritance::ask(&path, SOON).await;
    let taken = anywhere();
    let error = inherited
        .listen(taken.local_addr().unwrap(), false)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AddrInUse);
    assert!(inherited.predecessor().is_none());
}

#[test]
fn a_directory_in_which_others_can_write_is_refused() {
    let (folder, path) = place();
    assert!(is_usable(&path).unwrap());
    assert!(!is_usable(&folder.path().join("none/nmi.sock")).unwrap());
    let open = std::fs::Permissions::from_mode(0o777);
    std::fs::set_permissions(folder.path(), open).unwrap();
    assert_eq!(
        is_usable(&path).unwrap_err().kind(),
        ErrorKind::PermissionDenied
    );
}
