//! Many writers on old views, compared with a model that is a plain map.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// Generates names from a small alphabet, so that writers meet: files and directories of the same
/// names.
fn any_act() -> impl Strategy<Value = Act> {
    let name = prop_oneof!["[a-d]", "[a-d]/[a-d]", "[a-d]/[a-d]/[a-d]", "many/[0-9]{3}"];
    (name, 0..4u8).prop_map(|(name, kind)| if kind == 0 { Act::Remove(name) } else { Act::Put(name) })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Writers on old views either merge or fail as a whole. A model applies the same actions to a
    /// plain map, and decides which names must exist.
    #[test]
    fn writers_on_old_views_merge_or_change_nothing(
        full in 0..200usize,
        rounds in prop::collection::vec(prop::collection::vec(prop::collection::vec(any_act(), 1..5), 1..5), 1..6),
    ) {
        run(async {
            let memory = Memory::default();
            let mut model: BTreeMap<String, Tid> = BTreeMap::new();
            let filling: Vec<String> = (0..full).map(|i| format!("many/x{i}")).collect();
            if !filling.is_empty() {
                let acts: Vec<Act> = filling.iter().map(|name| Act::Put(name.clone())).collect();
                let tid = act(&memory, &acts).await.unwrap();
                model.extend(filling.into_iter().map(|name| (name, tid)));
            }
            for writers in rounds {
                let mut pending = Vec::new();
                for acts in writers {
                    let acts = one_act_a_name(acts);
                    if let Ok(prepared) = prepare(&memory, &acts).await {
                        pending.push((acts, prepared));
                    }
                }
                for (acts, prepared) in pending {
                    if let Ok(tid) = finish(&memory, prepared).await {
                        apply_to_model(&mut model, &acts, tid);
                    }
                    assert_eq!(files(&memory).await, model.keys().cloned().collect());
                }
                let view = View::now(&memory);
                for (name, tid) in &model {
                    assert_eq!(view.get_file(&name.parse().unwrap()).await.unwrap().tid, *tid);
                }
            }
        });
    }
}

/// Removes actions on a name that an earlier action is about, or on a name above or below it.
fn one_act_a_name(acts: Vec<Act>) -> Vec<Act> {
    let name = |act: &Act| match act {
        Act::Put(name) | Act::Remove(name) => name.clone(),
    };
    let mut kept: Vec<Act> = Vec::new();
    for act in acts {
        let new = name(&act);
        let meets = |old: String| {
            new == old || new.starts_with(&format!("{old}/")) || old.starts_with(&format!("{new}/"))
        };
        if !kept.iter().any(|old| meets(name(old))) {
            kept.push(act);
        }
    }
    kept
}

fn apply_to_model(model: &mut BTreeMap<String, Tid>, acts: &[Act], tid: Tid) {
    for act in acts {
        match act {
            Act::Put(name) => {
                model.insert(name.clone(), tid);
            }
            Act::Remove(name) => {
                let below = format!("{name}/");
                model.retain(|file, _| file != name && !file.starts_with(&below));
            }
        }
    }
}
