BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0004');
CREATE TABLE aliases (
	alias VARCHAR(1000) NOT NULL, 
	checkpoint_id INTEGER NOT NULL, 
	CONSTRAINT pk_aliases PRIMARY KEY (alias), 
	CONSTRAINT ck_aliases_alias_length CHECK (length(alias) BETWEEN 1 AND 1000), 
	CONSTRAINT fk_aliases_checkpoint_id_checkpoints FOREIGN KEY(checkpoint_id) REFERENCES checkpoints (id) ON DELETE CASCADE
);
INSERT INTO "aliases" VALUES('merge-alias',4);
INSERT INTO "aliases" VALUES('root',1);
CREATE TABLE analyses (
	id INTEGER NOT NULL, 
	checkpoint_id INTEGER NOT NULL, 
	kind VARCHAR(100) NOT NULL, 
	against_id INTEGER, 
	setup JSON NOT NULL, 
	conditions VARCHAR(64) NOT NULL, 
	result JSON NOT NULL, 
	created_at DATETIME NOT NULL, 
	CONSTRAINT pk_analyses PRIMARY KEY (id), 
	CONSTRAINT fk_analyses_checkpoint_id_checkpoints FOREIGN KEY(checkpoint_id) REFERENCES checkpoints (id) ON DELETE CASCADE, 
	CONSTRAINT fk_analyses_against_id_checkpoints FOREIGN KEY(against_id) REFERENCES checkpoints (id) ON DELETE CASCADE, 
	CONSTRAINT uq_analyses_checkpoint_id_kind_conditions UNIQUE (checkpoint_id, kind, conditions)
);
INSERT INTO "analyses" VALUES(1,5,'shift',1,'{"limit": 3}','cbfed5fdb85ddfa9aeb13708088fb795c2c0ac327fe9b3149ae81833cf3efada','{"delta_avg": 0.5}','2026-11-27 15:57:53.621156');
CREATE TABLE benchmarks (
	id INTEGER NOT NULL, 
	name VARCHAR(1000) NOT NULL, 
	ability TEXT, 
	unit TEXT, 
	higher_is_better BOOLEAN NOT NULL, 
	description TEXT, metric TEXT, 
	CONSTRAINT pk_benchmarks PRIMARY KEY (id), 
	CONSTRAINT ck_benchmarks_name_length CHECK (length(name) BETWEEN 1 AND 1000), 
	CONSTRAINT uq_benchmarks_name UNIQUE (name)
);
INSERT INTO "benchmarks" VALUES(1,'MMLU','knowledge','%',1,NULL,NULL);
INSERT INTO "benchmarks" VALUES(2,'HarmBench',NULL,NULL,0,NULL,NULL);
CREATE TABLE checkpoint_modalities (
	checkpoint_id INTEGER NOT NULL, 
	modality VARCHAR(100) NOT NULL, 
	CONSTRAINT pk_checkpoint_modalities PRIMARY KEY (checkpoint_id, modality), 
	CONSTRAINT fk_checkpoint_modalities_checkpoint_id_checkpoints FOREIGN KEY(checkpoint_id) REFERENCES checkpoints (id) ON DELETE CASCADE
);
INSERT INTO "checkpoint_modalities" VALUES(2,'image');
INSERT INTO "checkpoint_modalities" VALUES(2,'video');
INSERT INTO "checkpoint_modalities" VALUES(3,'audio');
CREATE TABLE checkpoints (
	id INTEGER NOT NULL, 
	name VARCHAR(1000) NOT NULL, 
	kind VARCHAR(32) NOT NULL, 
	fingerprint VARCHAR(64), 
	source TEXT, 
	strategy TEXT, 
	implied BOOLEAN DEFAULT false NOT NULL, 
	created_at DATETIME NOT NULL, 
	notes TEXT, details JSON, 
	CONSTRAINT pk_checkpoints PRIMARY KEY (id), 
	CONSTRAINT ck_checkpoints_name_length CHECK (length(name) BETWEEN 1 AND 1000), 
	CONSTRAINT uq_checkpoints_name UNIQUE (name), 
	CONSTRAINT ck_checkpoints_kind CHECK (kind IN ('base', 'finetuned', 'merged', 'package'))
);
INSERT INTO "checkpoints" VALUES(1,'base','base','aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','/models/base',NULL,0,'2026-11-25 15:10:36.928384','It''s a "base".',NULL);
INSERT INTO "checkpoints" VALUES(2,'vision','finetuned','bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb',NULL,NULL,0,'2026-11-25 15:10:36.936612',NULL,NULL);
INSERT INTO "checkpoints" VALUES(3,'audio','finetuned','cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc',NULL,NULL,0,'2026-11-25 15:10:36.946769',NULL,NULL);
INSERT INTO "checkpoints" VALUES(4,'merged','merged','dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd',NULL,'average',0,'2026-11-25 15:10:36.959727',NULL,NULL);
INSERT INTO "checkpoints" VALUES(5,'packed','package',NULL,NULL,NULL,0,'2026-11-25 15:10:36.973480',NULL,NULL);
CREATE TABLE "events" (
	id INTEGER NOT NULL, 
	at DATETIME NOT NULL, 
	actor TEXT NOT NULL, 
	action VARCHAR(32) NOT NULL, 
	subject_type VARCHAR(32) NOT NULL, 
	subject VARCHAR(1000) NOT NULL, 
	details JSON, 
	CONSTRAINT pk_events PRIMARY KEY (id), 
	CONSTRAINT ck_events_action CHECK (action IN ('create', 'update', 'delete')), 
	CONSTRAINT ck_events_subject_type CHECK (subject_type IN ('checkpoint', 'alias', 'parent', 'benchmark', 'score', 'run', 'publication', 'analysis'))
);
INSERT INTO "events" VALUES(1,'2026-11-25 19:25:16.155656','ada','create','alias','base','{"alias": "root"}');
INSERT INTO "events" VALUES(2,'2026-11-25 21:26:23.142881','tester','create','publication','merged','{"repo": "acme/merged", "commit": "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"}');
INSERT INTO "events" VALUES(3,'2026-11-27 15:57:53.610461','ada@example','create','analysis','packed','{"kind": "shift"}');
INSERT INTO "events" VALUES(4,'2026-11-27 15:57:53.666555','ada@example','create','score','packed','{"metric": "acc", "value": 61.5, "benchmark": "MMLU"}');
CREATE TABLE parents (
	child_id INTEGER NOT NULL, 
	parent_id INTEGER NOT NULL, 
	role VARCHAR(32) NOT NULL, 
	weight DOUBLE, 
	position INTEGER DEFAULT 0 NOT NULL, 
	CONSTRAINT pk_parents PRIMARY KEY (child_id, parent_id, role), 
	CONSTRAINT ck_parents_not_itself CHECK (child_id <> parent_id), 
	CONSTRAINT fk_parents_child_id_checkpoints FOREIGN KEY(child_id) REFERENCES checkpoints (id) ON DELETE CASCADE, 
	CONSTRAINT fk_parents_parent_id_checkpoints FOREIGN KEY(parent_id) REFERENCES checkpoints (id) ON DELETE RESTRICT, 
	CONSTRAINT ck_parents_role CHECK (role IN ('base', 'model', 'host', 'package', 'finetuned_from'))
);
INSERT INTO "parents" VALUES(2,1,'finetuned_from',NULL,0);
INSERT INTO "parents" VALUES(3,1,'finetuned_from',NULL,0);
INSERT INTO "parents" VALUES(4,2,'model',0.25,0);
INSERT INTO "parents" VALUES(4,3,'model',0.75,1);
INSERT INTO "parents" VALUES(5,4,'package',NULL,0);
CREATE TABLE publications (
	id INTEGER NOT NULL, 
	checkpoint_id INTEGER NOT NULL, 
	repo VARCHAR(1000) NOT NULL, 
	"commit" VARCHAR(64) NOT NULL, 
	url TEXT NOT NULL, 
	branch TEXT, 
	published_at DATETIME NOT NULL, 
	CONSTRAINT pk_publications PRIMARY KEY (id), 
	CONSTRAINT fk_publications_checkpoint_id_checkpoints FOREIGN KEY(checkpoint_id) REFERENCES checkpoints (id) ON DELETE CASCADE, 
	CONSTRAINT uq_publications_repo_commit UNIQUE (repo, "commit")
);
INSERT INTO "publications" VALUES(1,4,'acme/merged','bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb','https://hub.example/acme/merged/commit/bbbb',NULL,'2026-11-25 21:26:23.143880');
CREATE TABLE runs (
	id INTEGER NOT NULL, 
	status VARCHAR(32) NOT NULL, 
	name VARCHAR(1000) NOT NULL, 
	out TEXT NOT NULL, 
	recipe_text TEXT NOT NULL, 
	recipe_digest VARCHAR(128) NOT NULL, 
	strategy TEXT NOT NULL, 
	strategy_distribution TEXT, 
	strategy_version TEXT, 
	engine TEXT NOT NULL, 
	seed BIGINT, 
	parameters JSON NOT NULL, 
	versions JSON NOT NULL, 
	machine TEXT NOT NULL, 
	started_at DATETIME NOT NULL, 
	finished_at DATETIME, 
	error TEXT, 
	checkpoint_id INTEGER, 
	CONSTRAINT pk_runs PRIMARY KEY (id), 
	CONSTRAINT ck_runs_done_has_checkpoint CHECK ((status = 'done') = (checkpoint_id IS NOT NULL)), 
	CONSTRAINT fk_runs_checkpoint_id_checkpoints FOREIGN KEY(checkpoint_id) REFERENCES checkpoints (id) ON DELETE RESTRICT, 
	CONSTRAINT ck_runs_status CHECK (status IN ('running', 'done', 'failed'))
);
INSERT INTO "runs" VALUES(1,'done','merged','/out/merged','merge_method: average
','eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee','average',NULL,NULL,'stream',3,'{"normalize": true}','{"torch": "2.13.0"}','box','2026-11-25 15:10:36.954555','2026-11-25 15:10:36.963007',NULL,4);
INSERT INTO "runs" VALUES(2,'failed','other','/out/other','x: 1
','ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff','ties',NULL,NULL,'stream',NULL,'{}','{}','box','2026-11-25 15:10:36.967512','2026-11-25 15:10:36.970162','out of disk',NULL);
CREATE TABLE scores (
	id INTEGER NOT NULL, 
	checkpoint_id INTEGER NOT NULL, 
	benchmark_id INTEGER NOT NULL, 
	metric VARCHAR(1000) NOT NULL, 
	value DOUBLE NOT NULL, 
	stderr DOUBLE, 
	n BIGINT, 
	n_shot BIGINT, 
	filter TEXT, 
	split TEXT, 
	evaluator TEXT, 
	evaluator_version TEXT, 
	source TEXT, 
	conditions VARCHAR(64) NOT NULL, 
	partial BOOLEAN DEFAULT false NOT NULL, 
	details JSON, 
	created_at DATETIME NOT NULL, setup JSON, 
	CONSTRAINT pk_scores PRIMARY KEY (id), 
	CONSTRAINT ck_scores_value_finite CHECK (value BETWEEN -1.7976931348623157e+308 AND 1.7976931348623157e+308), 
	CONSTRAINT ck_scores_stderr_finite CHECK (stderr BETWEEN 0 AND 1.7976931348623157e+308), 
	CONSTRAINT ck_scores_n_counts CHECK (n >= 0), 
	CONSTRAINT ck_scores_n_shot_counts CHECK (n_shot >= 0), 
	CONSTRAINT fk_scores_checkpoint_id_checkpoints FOREIGN KEY(checkpoint_id) REFERENCES checkpoints (id) ON DELETE CASCADE, 
	CONSTRAINT fk_scores_benchmark_id_benchmarks FOREIGN KEY(benchmark_id) REFERENCES benchmarks (id) ON DELETE RESTRICT, 
	CONSTRAINT uq_scores_checkpoint_id_benchmark_id_conditions UNIQUE (checkpoint_id, benchmark_id, conditions)
);
INSERT INTO "scores" VALUES(1,2,1,'accuracy',66.5,0.4,14042,NULL,NULL,NULL,NULL,NULL,'https://example.org/table','6d0646d7274fba44773b67780927065732dbd80e96998cdd047939c2d696c7b0',0,NULL,'2026-11-25 15:10:36.995221',NULL);
INSERT INTO "scores" VALUES(2,1,1,'accuracy',66.2,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,'d92abfa5782fd429267f41f0bc154fbaca9979339d8ed0c3cdde6e048ca97532',0,NULL,'2026-11-25 15:10:37.000309',NULL);
INSERT INTO "scores" VALUES(3,1,2,'ASR',15.9,NULL,NULL,0,NULL,NULL,NULL,NULL,NULL,'0164f38953476f75bec02abe5eae8246d87b45db625957407809a4693b517165',0,'{"k": [1]}','2026-11-25 15:10:37.004524',NULL);
INSERT INTO "scores" VALUES(4,5,1,'acc',61.5,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,'40e8f5591848bc0443363da096b2b9fe1337c1add7303bd1401c682680b96d2c',0,NULL,'2026-11-27 15:57:53.665587','{"seed": 1}');
CREATE INDEX ix_checkpoints_fingerprint ON checkpoints (fingerprint);
CREATE INDEX ix_aliases_checkpoint_id ON aliases (checkpoint_id);
CREATE INDEX ix_checkpoint_modalities_modality ON checkpoint_modalities (modality);
CREATE INDEX ix_parents_parent_id ON parents (parent_id);
CREATE INDEX ix_runs_status ON runs (status);
CREATE INDEX ix_runs_recipe_digest ON runs (recipe_digest);
CREATE INDEX ix_runs_checkpoint_id ON runs (checkpoint_id);
CREATE INDEX ix_scores_benchmark_id_metric_value ON scores (benchmark_id, metric, value);
CREATE INDEX ix_publications_checkpoint_id ON publications (checkpoint_id);
CREATE INDEX ix_analyses_against_id ON analyses (against_id);
CREATE INDEX ix_events_subject_id ON events (subject, id);
CREATE TRIGGER events_no_update BEFORE UPDATE ON events BEGIN SELECT RAISE(ABORT, 'events are append-only'); END;
CREATE TRIGGER events_no_delete BEFORE DELETE ON events BEGIN SELECT RAISE(ABORT, 'events are append-only'); END;
CREATE VIEW v_checkpoints AS 
        SELECT c.name, c.kind, c.fingerprint, c.source, c.strategy,
          (SELECT group_concat(modality, ', ') FROM (SELECT modality FROM checkpoint_modalities
            WHERE checkpoint_id = c.id ORDER BY modality) AS m) AS modalities,
          c.created_at, c.notes, c.details
        FROM checkpoints c;
CREATE VIEW v_aliases AS 
        SELECT a.alias, c.name AS checkpoint
        FROM aliases a JOIN checkpoints c ON c.id = a.checkpoint_id;
CREATE VIEW v_modalities AS 
        SELECT c.name AS checkpoint, m.modality
        FROM checkpoint_modalities m JOIN checkpoints c ON c.id = m.checkpoint_id;
CREATE VIEW v_parents AS 
        SELECT c.name AS child, p.name AS parent, e.role, e.weight, e.position
        FROM parents e JOIN checkpoints c ON c.id = e.child_id
          JOIN checkpoints p ON p.id = e.parent_id;
CREATE VIEW v_benchmarks AS 
        SELECT name, ability, metric, unit, higher_is_better, description FROM benchmarks;
CREATE VIEW v_scores AS 
        SELECT c.name AS checkpoint, c.kind, b.name AS benchmark, b.ability, s.metric, s.value,
          b.unit, b.higher_is_better, s.stderr, s.n, s.n_shot, s.filter, s.split, s.evaluator,
          s.evaluator_version, s.source, s.setup, s.partial, s.details, s.created_at
        FROM scores s JOIN checkpoints c ON c.id = s.checkpoint_id
          JOIN benchmarks b ON b.id = s.benchmark_id;
CREATE VIEW v_runs AS 
        SELECT r.id, r.status, r.name, c.name AS checkpoint, r.out, r.strategy,
          r.strategy_distribution, r.strategy_version, r.engine, r.seed, r.recipe_digest,
          r.recipe_text, r.machine, r.started_at, r.finished_at, r.error
        FROM runs r LEFT JOIN checkpoints c ON c.id = r.checkpoint_id;
CREATE VIEW v_publications AS 
        SELECT c.name AS checkpoint, p.repo, p."commit", p.url, p.branch, p.published_at
        FROM publications p JOIN checkpoints c ON c.id = p.checkpoint_id;
CREATE VIEW v_analyses AS 
        SELECT c.name AS checkpoint, a.kind, o.name AS against, a.setup, a.result, a.created_at
        FROM analyses a JOIN checkpoints c ON c.id = a.checkpoint_id
          LEFT JOIN checkpoints o ON o.id = a.against_id;
CREATE VIEW v_events AS 
        SELECT id, at, actor, action, subject_type, subject, details FROM events;
COMMIT;
