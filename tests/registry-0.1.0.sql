BEGIN TRANSACTION;
CREATE TABLE activations (
	seq INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
	task VARCHAR(63) NOT NULL,
	version INTEGER NOT NULL,
	action VARCHAR(16) NOT NULL,
	parent INTEGER,
	at DATETIME NOT NULL,
	"by" TEXT
);
INSERT INTO "activations" VALUES(1,'x',1,'activate',NULL,'2026-11-24 04:44:17.249689',NULL);
INSERT INTO "activations" VALUES(2,'x',2,'activate',1,'2026-11-24 04:44:17.265776',NULL);
INSERT INTO "activations" VALUES(3,'x',3,'activate',2,'2026-11-24 04:44:17.277371',NULL);
INSERT INTO "activations" VALUES(4,'y',1,'activate',NULL,'2026-11-24 04:44:17.285680',NULL);
INSERT INTO "activations" VALUES(5,'y',2,'activate',4,'2026-11-24 04:44:17.295744',NULL);
INSERT INTO "activations" VALUES(6,'y',3,'activate',5,'2026-11-24 04:44:17.305225',NULL);
CREATE TABLE tasks (
	name VARCHAR(63) NOT NULL,
	profile TEXT NOT NULL,
	active_seq INTEGER,
	since_seq INTEGER NOT NULL,
	created_at DATETIME NOT NULL,
	updated_at DATETIME NOT NULL,
	deleted_at DATETIME,
	PRIMARY KEY (name)
);
INSERT INTO "tasks" VALUES('x','{"description":"","template":null,"chat":false,"defaults":{"max_tokens":null,"temperature":null,"top_p":null,"top_k":null,"seed":null,"stop":null},"limits":{"max_tokens":null,"max_prompt_tokens":null,"max_concurrency":null},"weight":1.0}',3,0,'2026-11-24 04:44:17.244480','2026-11-24 04:44:17.277608',NULL);
INSERT INTO "tasks" VALUES('y','{"description":"","template":null,"chat":false,"defaults":{"max_tokens":null,"temperature":null,"top_p":null,"top_k":null,"seed":null,"stop":null},"limits":{"max_tokens":null,"max_prompt_tokens":null,"max_concurrency":null},"weight":1.0}',6,3,'2026-11-24 04:44:17.284693','2026-11-24 04:44:17.309941',NULL);
CREATE TABLE versions (
	task VARCHAR(63) NOT NULL,
	number INTEGER NOT NULL,
	manifest TEXT NOT NULL,
	digest VARCHAR(71) NOT NULL,
	created_at DATETIME NOT NULL,
	deleted_at DATETIME,
	PRIMARY KEY (task, number)
);
INSERT INTO "versions" VALUES('x',1,'{"task":"x","version":1,"digest":"sha256:a0bf17292bff9a9aadfbe104e0686544f5e9cb53427ca4d8beb520e34ffb09a6","num_virtual_tokens":3,"position_offset":3,"num_bytes":6000,"dtype":"float32","base_model":"tiny","fingerprint":"sha256:cae662172fd450bb0cd710a769079c05bfc5d8e35efa6576edc7d0377afdd4a2","source_format":"foreword","source_digest":"sha256:a0bf17292bff9a9aadfbe104e0686544f5e9cb53427ca4d8beb520e34ffb09a6","prompt":{"add_special_tokens":true,"messages":null},"verification":[],"created_at":"2026-11-24T04:44:17.249197Z","created_by":null}','sha256:a0bf17292bff9a9aadfbe104e0686544f5e9cb53427ca4d8beb520e34ffb09a6','2026-11-24 04:44:17.249197',NULL);
INSERT INTO "versions" VALUES('x',2,'{"task":"x","version":2,"digest":"sha256:116533e3c8c43159592fef5aa53cc85863b510807af7a02d5e752a3642667aac","num_virtual_tokens":3,"position_offset":3,"num_bytes":6000,"dtype":"float32","base_model":"tiny","fingerprint":"sha256:cae662172fd450bb0cd710a769079c05bfc5d8e35efa6576edc7d0377afdd4a2","source_format":"foreword","source_digest":"sha256:116533e3c8c43159592fef5aa53cc85863b510807af7a02d5e752a3642667aac","prompt":{"add_special_tokens":true,"messages":null},"verification":[],"created_at":"2026-11-24T04:44:17.265482Z","created_by":null}','sha256:116533e3c8c43159592fef5aa53cc85863b510807af7a02d5e752a3642667aac','2026-11-24 04:44:17.265482',NULL);
INSERT INTO "versions" VALUES('x',3,'{"task":"x","version":3,"digest":"sha256:b480bcd06d6e2a6d9dea5f7383fbce3df2cde0fd1f3283b175966c2d388dfccd","num_virtual_tokens":3,"position_offset":3,"num_bytes":6000,"dtype":"float32","base_model":"tiny","fingerprint":"sha256:cae662172fd450bb0cd710a769079c05bfc5d8e35efa6576edc7d0377afdd4a2","source_format":"foreword","source_digest":"sha256:b480bcd06d6e2a6d9dea5f7383fbce3df2cde0fd1f3283b175966c2d388dfccd","prompt":{"add_special_tokens":true,"messages":null},"verification":[],"created_at":"2026-11-24T04:44:17.277140Z","created_by":null}','sha256:b480bcd06d6e2a6d9dea5f7383fbce3df2cde0fd1f3283b175966c2d388dfccd','2026-11-24 04:44:17.277140',NULL);
INSERT INTO "versions" VALUES('y',1,'{"task":"y","version":1,"digest":"sha256:48159366d872494b0c96470b16e44d77d9545c99a225419f4e336d9ce6af3c50","num_virtual_tokens":3,"position_offset":3,"num_bytes":6000,"dtype":"float32","base_model":"tiny","fingerprint":"sha256:cae662172fd450bb0cd710a769079c05bfc5d8e35efa6576edc7d0377afdd4a2","source_format":"foreword","source_digest":"sha256:48159366d872494b0c96470b16e44d77d9545c99a225419f4e336d9ce6af3c50","prompt":{"add_special_tokens":true,"messages":null},"verification":[],"created_at":"2026-11-24T04:44:17.285323Z","created_by":null}','sha256:48159366d872494b0c96470b16e44d77d9545c99a225419f4e336d9ce6af3c50','2026-11-24 04:44:17.285323','2026-11-24 04:44:17.309545');
INSERT INTO "versions" VALUES('y',2,'{"task":"y","version":2,"digest":"sha256:05682dace3c8244e2e597497c41897f6f71449196158024a0cc36f6cc1ac6920","num_virtual_tokens":3,"position_offset":3,"num_bytes":6000,"dtype":"float32","base_model":"tiny","fingerprint":"sha256:cae662172fd450bb0cd710a769079c05bfc5d8e35efa6576edc7d0377afdd4a2","source_format":"foreword","source_digest":"sha256:05682dace3c8244e2e597497c41897f6f71449196158024a0cc36f6cc1ac6920","prompt":{"add_special_tokens":true,"messages":null},"verification":[],"created_at":"2026-11-24T04:44:17.295496Z","created_by":null}','sha256:05682dace3c8244e2e597497c41897f6f71449196158024a0cc36f6cc1ac6920','2026-11-24 04:44:17.295496',NULL);
INSERT INTO "versions" VALUES('y',3,'{"task":"y","version":3,"digest":"sha256:7b6865e6362120afc6ab6e4cd4d296210b163b47e53b72039b9047ef4b2d0e23","num_virtual_tokens":3,"position_offset":3,"num_bytes":6000,"dtype":"float32","base_model":"tiny","fingerprint":"sha256:cae662172fd450bb0cd710a769079c05bfc5d8e35efa6576edc7d0377afdd4a2","source_format":"foreword","source_digest":"sha256:7b6865e6362120afc6ab6e4cd4d296210b163b47e53b72039b9047ef4b2d0e23","prompt":{"add_special_tokens":true,"messages":null},"verification":[],"created_at":"2026-11-24T04:44:17.305013Z","created_by":null}','sha256:7b6865e6362120afc6ab6e4cd4d296210b163b47e53b72039b9047ef4b2d0e23','2026-11-24 04:44:17.305013',NULL);
CREATE INDEX activations_of_a_task ON activations (task, seq);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('activations',6);
COMMIT;
