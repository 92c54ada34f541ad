"""Publishing: a run or an artefact to a hub, a store, a drive or an archive."""
