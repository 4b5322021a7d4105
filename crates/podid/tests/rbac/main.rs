//! Least privilege, proven: `podid mic`, `podid nmi` and `podid broker` work on a real kube-apiserver as the service accounts of the
//! chart, with exactly their roles; and with any one verb of any one resource less, something does not.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test"
)]

mod broker;
#[allow(dead_code, reason = "not every test needs all of it")]
mod broker_world;
#[path = "../chart/cluster.rs"]
#[allow(dead_code, reason = "not every test needs all of it")]
mod cluster;
mod nmi;
mod node;
mod roles;
#[path = "../world/azure.rs"]
mod shared;
mod world;

use world::World;

/// What the world is brought to before mic starts with one verb less.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Before {
    /// A pod comes that needs another identity.
    Another,
    /// All pods go; then a new one comes to a host without a record.
    Fresh,
    /// The pods go.
    Gone,
    /// As `Another`, on a cluster without a Lease.
    NoLease,
    /// The federated identity of before goes.
    Unfederated,
}

/// What then does not come about.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Broken {
    /// The new pod's AzureAssignedIdentity says Assigned.
    Assignment,
    /// AzureAssignedIdentities of pods that are gone are deleted.
    Removal,
    /// The record of a host to which nothing is attached any more is deleted.
    Record,
    /// The AzureIdentity says that it is attached.
    Condition,
    /// The binding has an Event.
    Event,
    /// Objects in the older spelling are respelt.
    Spelling,
    /// A service account stands for the new federated identity.
    Account,
    /// No service account stands for a federated identity that is gone.
    NoAccount,
    /// Nothing but what mic says: it lists again and again.
    Watch,
}

/// Each verb of each resource that mic has, and what it is for.
const RULES: [(&str, &str, Before, Broken); 36] = {
    use Before::{Another, Fresh, Gone, NoLease, Unfederated};
    use Broken::{
        Account, Assignment, Condition, Event, NoAccount, Record, Removal, Spelling, Watch,
    };
    [
        ("pods", "list", Another, Assignment),
        ("pods", "watch", Another, Watch),
        ("nodes", "list", Another, Assignment),
        ("nodes", "watch", Another, Watch),
        ("azureidentities", "list", Another, Assignment),
        ("azureidentities", "watch", Another, Watch),
        ("azureidentities", "get", Another, Spelling),
        ("azureidentities", "patch", Another, Spelling),
        ("azureidentitybindings", "list", Another, Assignment),
        ("azureidentitybindings", "watch", Another, Watch),
        ("azureidentitybindings", "get", Another, Spelling),
        ("azureidentitybindings", "patch", Another, Spelling),
        ("azurepodidentityexceptions", "list", Another, Spelling),
        ("azurepodidentityexceptions", "watch", Another, Watch),
        ("azurepodidentityexceptions", "get", Another, Spelling),
        ("azurepodidentityexceptions", "patch", Another, Spelling),
        ("azureidentities/status", "patch", Another, Condition),
        ("azureassignedidentities", "list", Another, Assignment),
        ("azureassignedidentities", "watch", Another, Watch),
        ("azureassignedidentities", "create", Another, Assignment),
        ("azureassignedidentities", "patch", Another, Assignment),
        ("azureassignedidentities", "delete", Gone, Removal),
        ("events", "create", Another, Event),
        ("configmaps", "list", Another, Assignment),
        ("configmaps", "create", Fresh, Assignment),
        ("configmaps", "patch", Another, Assignment),
        ("configmaps", "delete", Gone, Record),
        ("leases", "get", Another, Assignment),
        ("leases", "create", NoLease, Assignment),
        ("leases", "update", Another, Assignment),
        ("endpoints", "get", Another, Assignment),
        ("endpoints", "patch", Another, Assignment),
        ("serviceaccounts", "list", Another, Account),
        ("serviceaccounts", "watch", Another, Watch),
        ("serviceaccounts", "create", Another, Account),
        ("serviceaccounts", "delete", Unfederated, NoAccount),
    ]
};

/// Verbs that are needed when another leader, or chance, has been faster; their own tests are in the crates.
const IN_A_RACE: [(&str, &str); 2] = [("configmaps", "get"), ("events", "patch")];

#[tokio::test(flavor = "multi_thread")]
async fn mic_has_what_it_needs_and_nothing_else() {
    let world = World::build().await;
    let mut granted = world.roles.granted();
    granted
        .retain(|(_, _, resource, verb)| !IN_A_RACE.contains(&(resource.as_str(), verb.as_str())));
    let mut round = 0;
    for (kind, role, resource, verb) in granted {
        let named = |(r, v, ..): &&(&str, &str, Before, Broken)| *r == resource && *v == verb;
        let Some((.., before, broken)) = RULES.iter().find(named) else {
            panic!("{role} grants {verb} on {resource}, and nothing here says what for");
        };
        round += 1;
        let first = format!("first-{round}");
        // With everything it has, mic brings the world into order: at first, and where its own objects matter.
        if round == 1 || kind == "Role" || *before != Before::Another {
            let mut mic = world.start("mic-all");
            world.need(&first).await;
            world
                .until(&mic, &first, || world.is_assigned(&first))
                .await;
            world
                .until(&mic, "an account", || world.has_account(&first))
                .await;
            if *before == Before::Fresh {
                world.remove_pods().await;
                world
                    .until(&mic, "no record", || world.has_no_record())
                    .await;
            }
            mic.kill();
        }
        world.roles.without(&kind, &role, &resource, &verb).await;
        let second = format!("second-{round}");
        match before {
            Before::Another | Before::Fresh => world.need(&second).await,
            Before::Gone => world.remove_pods().await,
            Before::Unfederated => world.unfederate(&first).await,
            Before::NoLease => {
                world.delete_lease().await;
                world.need(&second).await;
            }
        }
        let mut mic = world.start("mic-less");
        let told = format!("cannot {verb} resource \\\"{resource}\\\"");
        world.until_said(&mic, &told).await;
        let holds = match broken {
            Broken::Assignment => world.is_assigned(&second).await,
            Broken::Removal => !world.has_assignment(&first).await,
            Broken::Record => world.has_no_record().await,
            Broken::Condition => world.has_condition(&second).await,
            Broken::Event => world.has_event(&second).await,
            Broken::Spelling => world.is_respelt(&second).await,
            Broken::Account => world.has_account(&second).await,
            Broken::NoAccount => !world.has_account(&first).await,
            Broken::Watch => false,
        };
        assert!(
            !holds,
            "{broken:?} without {verb} on {resource}: {}",
            mic.log()
        );
        mic.kill();
        world.roles.restore(&kind, &role).await;
    }
}
