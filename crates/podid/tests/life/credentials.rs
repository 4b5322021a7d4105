//! What happens to that by which podid and the API server know each other.

use crate::served::Served;
use crate::world::Settings;

/// podid's processes run as in their pods, as the service accounts that are shipped. Tokens and authorities are read anew every
/// minute, of which sixty pass in one here.
#[test]
fn tokens_and_certificates_are_renewed_under_running_processes() {
    let settings = Settings {
        speed: 60,
        mic: &[],
        in_cluster: true,
    };
    let served = Served::new("cre", settings);
    let (scene, world) = (&served.scene, &served.scene.world);
    let pids = || -> Vec<u32> {
        let mics = world.mics.lock().unwrap();
        let nmi = world.nmi.lock().unwrap();
        assert!(mics.iter().chain(nmi.iter()).all(|p| !p.has_ended()));
        mics.iter().chain(nmi.iter()).map(|p| p.pid()).collect()
    };
    let before = pids();
    let restart = || {
        world.api.stop();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(world.api.resume()).unwrap();
    };

    // The old tokens are good for nothing any more.
    for role in ["mic", "nmi"] {
        world.renew_token(role, "second");
        let line = format!("-n podid delete pod {role}-first --grace-period=0 --force");
        world.says(&line);
    }
    restart();
    served.another_comes_and_goes("token");

    // The authority is another, and the server's certificate is of it.
    world.api.renew_certificate().unwrap();
    for role in ["mic", "nmi"] {
        world.renew_authority(role);
    }
    restart();
    served.another_comes_and_goes("cert");
    assert_eq!(scene.assignments().len(), 1);
    assert_eq!(pids(), before, "they are the same processes");
    served.nothing_failed();
}
