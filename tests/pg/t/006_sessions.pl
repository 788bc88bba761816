# Sessions in files: over the engine's end, only for who may have files, and what is no session leaves nothing behind.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/..";
use MixtralTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_cluster('sessions', 'mixtral.model' => model('tiny'));
my $folder = "$PostgreSQL::Test::Utils::tmp_check/files";
mkdir $folder;
my ($file, $key) = ("$folder/contract.session", "$folder/session.key");
append_to_file($key, 'k' x 32);
append_to_file("$folder/other.key", 'o' x 32);
my $document = 'The tenant pays the rent in time. ' x 20;
my ($out, $err);

sub as_role
{
	my ($role, $sql) = @_;
	my ($rc, $stdout, $stderr) = $node->psql('postgres', $sql, extra_params => [ '-U', $role ]);
	return $rc == 0 ? $stdout : "ERROR " . $stderr;
}

sub cached { return as_role($_[0], "SELECT cached_tokens FROM mixtral_generate('${document}Does he?', max_tokens => 1)"); }

sub left { return join ' ', map { s,.*/,,r } sort glob "$folder/*"; }

my $before = 'contract.session other.key session.key';

# ---- Rights ----

my $save = "SELECT mixtral_session_save('$file', '$key', '$document')";
my $load = "SELECT mixtral_session_load('$file', '$key')";
$node->safe_psql('postgres', q{
	CREATE ROLE alice LOGIN; CREATE ROLE bob LOGIN; CREATE ROLE reader LOGIN; CREATE ROLE writer LOGIN;
	SELECT mixtral_grant('alice'), mixtral_grant('bob'), mixtral_grant('reader');
	GRANT pg_read_server_files TO alice, reader; GRANT pg_write_server_files TO alice, writer});
like(as_role('alice', $save), qr/permission denied for function mixtral_session_save/, 'mixtral_grant does not give the right to save');
like(as_role('alice', $load), qr/permission denied for function mixtral_session_load/, '... nor to load');
$node->safe_psql('postgres', q{
	GRANT EXECUTE ON FUNCTION mixtral_session_save(text, text, text, jsonb, text, text), mixtral_session_load(text, text, jsonb, text)
	TO alice, bob, reader, writer});
for my $role (qw(bob reader writer))
{
	like(as_role($role, "\\set VERBOSITY verbose\n$save"), qr/ERROR:  42501: permission denied to save.*HINT:.*pg_write_server_files and pg_read_server_files/s, "$role cannot save");
}
for my $role (qw(bob writer))
{
	like(as_role($role, "\\set VERBOSITY verbose\n$load"), qr/ERROR:  42501: permission denied to load.*HINT:.*pg_read_server_files/s, "$role cannot load");
}
is(left(), 'other.key session.key', '... which makes no file');

# ---- A document is read once in its life ----

my $tokens = as_role('alice', $save);
cmp_ok($tokens, '>', 64, 'a session is saved');
is(left(), $before, '... in one file');
is((stat $file)[2] & 0777, 0600, '... that is the server user\'s alone');
my $engine = engine_of($node);
kill 'KILL', $engine;
ok(wait_for(sub { my $pid = engine_of($node); $pid ne '' && $pid ne $engine && figure($node, 'state') eq 'serving' }), 'another engine');
is(cached('alice'), '0', '... has not read it');
$node->restart;
is(as_role('reader', $load), $tokens, 'after a restart it is loaded, by another role');
cmp_ok(cached('reader'), '>=', $tokens, '... for which it is not read again');
is(cached('alice'), '0', '... but for no other');
is(as_role('alice', $load), $tokens, 'loaded for this one');
cmp_ok(cached('alice'), '>=', $tokens, '... it is there, too');

# ---- What is no session ----

my $bytes = slurp_file($file);
for my $at (3, 40, 200, length($bytes) - 1)
{
	my $changed = $bytes;
	substr($changed, $at, 1) ^= "\x01";
	open my $out, '>:raw', "$folder/changed" or die;
	print $out $changed;
	close $out;
	like(as_role('alice', "\\set VERBOSITY verbose\nSELECT mixtral_session_load('$folder/changed', '$key')"),
		qr/ERROR:  38000: session file: /, "byte $at is changed: refused");
}
unlink "$folder/changed";
like(as_role('alice', "\\set VERBOSITY verbose\nSELECT mixtral_session_load('$file', '$folder/other.key')"), qr/ERROR:  38000: session file: /, 'another key: refused');
like(as_role('alice', "SELECT mixtral_session_load('$file', '$file')"), qr/key file: expected 32 bytes/, 'no key at all');
system('mkfifo', "$folder/pipe") == 0 or die;
like(as_role('alice', "SELECT mixtral_session_load('$folder/pipe', '$key')"), qr/expected a regular file/, 'a named pipe makes nobody wait');
like(as_role('alice', "SELECT mixtral_session_save('$folder/pipe', '$key', '$document')"), qr/pipe" is not a regular file/, '... nor is it replaced');
unlink "$folder/pipe";
like(as_role('alice', "SELECT mixtral_session_save('$file', '$folder/none.key', '$document')"), qr/could not open file ".*none\.key" for reading: No such file/, 'no key file');
like(as_role('alice', "SELECT mixtral_session_save('$file', '$key', 'short')"), qr/at least 32 tokens/, 'too short to be saved');
is(slurp_file($file), $bytes, 'what failed has left the old session');
is(left(), $before, '... and nothing else');
set($node, 'mixtral.model' => model('other'));
ok(wait_for(sub { figure($node, 'model') eq model('other') }), 'another model');
like(as_role('alice', "\\set VERBOSITY verbose\n$load"), qr/ERROR:  22023: session file: it is of the model /, '... refuses it');

# ---- Cancelled, terminated, rolled back ----

set($node, 'mixtral.model' => model('chat'));
ok(wait_for(sub { figure($node, 'model') eq model('chat') }), 'a slower model');
my $session = $node->background_psql('postgres', on_error_stop => 0);
my $pid = $session->query_safe('SELECT pg_backend_pid()');
my $files = sub { return scalar grep { (readlink // '') =~ /^\Q$folder\E/ } glob "/proc/$pid/fd/*"; };
my $long = "SELECT mixtral_session_save('$file', '$key', repeat('word ', 7000) || random())";
$session->query("SET statement_timeout = '500ms'; $long; RESET statement_timeout");
like($session->{stderr}, qr/canceling statement due to statement timeout/, 'a save runs into statement_timeout');
is($files->(), 0, '... and leaves no descriptor');
is(left(), $before, '... nor a file');
$session->query("BEGIN; SAVEPOINT s; SET LOCAL statement_timeout = '500ms'; $long; ROLLBACK TO s");
is($files->(), 0, 'a savepoint that is rolled back leaves no descriptor, either');
$session->query('ROLLBACK');
$session->quit;
for my $way (qw(cancel terminate))
{
	my $run = begin_psql($node, $long);
	my $backend;
	ok(wait_for(sub { ($backend = $node->safe_psql('postgres', "SELECT pid FROM mixtral_stat_activity WHERE function = 'mixtral_session_save' AND state = 'waiting'")) ne '' }), "$way: a save is at work");
	like(left(), qr/contract\.session\.[0-9a-f]{8}/, "$way: ... in a file beside");
	$node->safe_psql('postgres', "SELECT pg_${way}_backend($backend)");
	isnt(end_psql($run), 0, "$way: it fails");
	like($run->{err}, $way eq 'cancel' ? qr/canceling statement due to user request/ : qr/terminating connection/, "$way: ... and says so");
	ok(wait_for(sub { left() eq $before }, 5), "$way: ... and leaves no file") or diag(left());
	ok(idle_engine($node, 10), "$way: ... and no block in use");
}
is(slurp_file($file), $bytes, 'the old session is what it was');
$node->stop;

done_testing();
