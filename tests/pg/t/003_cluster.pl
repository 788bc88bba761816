# The engine and the cluster: databases, shutdown of every kind, standbys, dumps, preloading.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/..";
use MixtralTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

my $node = new_cluster('main', allows_streaming => 1, 'mixtral.model' => model('tiny'));
my ($out, $err);

# ---- While a model is loaded ----

$node->safe_psql('postgres', 'CREATE DATABASE victim');
$node->safe_psql('postgres', "SELECT mixtral_chat('hi', max_tokens => 1)");
set($node, 'mixtral.program' => slow_program('slow', 6), 'mixtral.threads' => 1);
ok(wait_for(sub { figure($node, 'starts') eq '2' }), 'another engine is being loaded');
my $begin = time;
$node->safe_psql('postgres', 'DROP DATABASE victim');
cmp_ok(time - $begin, '<', 3, 'DROP DATABASE does not wait for it');
is($node->safe_psql('postgres', "SELECT mixtral_chat('hi', max_tokens => 1) IS NOT NULL"), 't', 'calls are answered by the old one');
$begin = time;
set($node, 'mixtral.program' => '', 'mixtral.threads' => 2);
ok(wait_for(sub { figure($node, 'starts') >= 3 && scalar(engines($node)) == 1 && figure($node, 'retired') eq '0' }),
	'another reload in the meantime: what was being loaded is given up');

# ---- Shutdown ----

for my $mode (qw(smart fast immediate))
{
	is($node->safe_psql('postgres', "SELECT mixtral_chat('hi', max_tokens => 1) IS NOT NULL"), 't', "before a $mode shutdown");
	my @before = engines($node);
	my $run = $mode eq 'smart' ? undef : begin_psql($node, "SELECT count(mixtral_chat('hi', '{\"ignore_eos\": true}', max_tokens => 900)) FROM generate_series(1, 1000)");
	backend_of($node, '%generate_series(1, 1000)%') if $run;
	$begin = time;
	$node->stop($mode);
	cmp_ok(time - $begin, '<', 10, "a $mode shutdown does not wait");
	end_psql($run) if $run;
	ok(wait_for(sub { !grep { is_alive($_) } @before }, 2), '... and leaves no engine');
	$node->start;
}

# the postmaster dies
is($node->safe_psql('postgres', "SELECT mixtral_chat('hi', max_tokens => 1) IS NOT NULL"), 't', 'before the postmaster is killed');
my @before = engines($node);
is(scalar @before, 1, '... there is an engine');
my $worker = figure($node, 'worker_pid');
my ($postmaster) = slurp_file($node->data_dir . '/postmaster.pid') =~ /^(\d+)/;
$node->kill9;
ok(wait_for(sub { !grep { is_alive($_) } (@before, $worker) }, 10), 'kill -9 of the postmaster: neither engine nor worker is left');
# where nobody reaps it, its body still counts as a server for pg_ctl
wait_for(sub { !-d "/proc/$postmaster" }, 2) or unlink($node->data_dir . '/postmaster.pid');
$node->start;
is($node->safe_psql('postgres', "SELECT mixtral_chat('hi', max_tokens => 1) IS NOT NULL"), 't', '... and the next server has its own');

# the worker is terminated
$worker = figure($node, 'worker_pid');
@before = engines($node);
$node->safe_psql('postgres', "SELECT pg_terminate_backend($worker)");
ok(wait_for(sub { !is_alive($before[0]) }, 5), 'the worker is terminated: its engine goes with it');
is($node->safe_psql('postgres', "SELECT mixtral_chat('hi', max_tokens => 1) IS NOT NULL"), 't', '... and the next call starts another');

# ---- Dump, restore, update ----

my $dump = $PostgreSQL::Test::Utils::tmp_check . '/dump.sql';
$node->safe_psql('postgres', "CREATE ROLE friend LOGIN; SELECT mixtral_grant('friend')");
$node->command_ok(['pg_dump', '-f', $dump, '-d', $node->connstr('postgres')], 'pg_dump of a database with the extension');
like(slurp_file($dump), qr/CREATE EXTENSION IF NOT EXISTS mixtral/, '... has the extension');
unlike(slurp_file($dump), qr/CREATE FUNCTION public\.mixtral/, '... and not its members');
$node->safe_psql('postgres', 'CREATE DATABASE copy');
$node->command_ok(['psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-f', $dump, '-d', $node->connstr('copy')], '... and can be restored');
is($node->safe_psql('copy', "SELECT mixtral_chat('hi', max_tokens => 1) IS NOT NULL"), 't', '... to something that works');
is($node->safe_psql('copy', "SELECT has_function_privilege('friend', 'mixtral_embed(text, jsonb)', 'EXECUTE')"), 't', '... with the rights that were granted');
# a later version that says so: the update path, made by hand in the temporary installation
chomp(my $share = `pg_config --sharedir`);
append_to_file("$share/extension/mixtral--0.1.0--0.1.1.sql", "CREATE FUNCTION mixtral_of_tomorrow() RETURNS int LANGUAGE sql AS 'SELECT 1';\n");
$node->safe_psql('copy', "ALTER EXTENSION mixtral UPDATE TO '0.1.1'");
is($node->safe_psql('copy', "SELECT extversion || mixtral_of_tomorrow() FROM pg_extension WHERE extname = 'mixtral'"), '0.1.11', 'ALTER EXTENSION UPDATE');
is($node->safe_psql('copy', "SELECT mixtral_chat('hi', max_tokens => 1) IS NOT NULL"), 't', '... keeps what was there');
unlink "$share/extension/mixtral--0.1.0--0.1.1.sql";
$node->safe_psql('copy', 'DROP EXTENSION mixtral');
is($node->safe_psql('copy', "SELECT count(*) FROM pg_proc WHERE proname LIKE 'mixtral%'"), '0', 'DROP EXTENSION leaves nothing');

# ---- A standby has its own; preloaded it starts with the server ----

$node->command_ok(['pg_basebackup', '-D', $node->backup_dir . '/one', '-h', $node->host, '-p', $node->port, '--checkpoint', 'fast', '--no-sync', '-X', 'stream'],
	'pg_basebackup with a running engine');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'one', has_streaming => 1);
ok(!-e $standby->data_dir . '/pg_stat_tmp/mixtral.sock', '... does not take the socket along');
$standby->append_conf('postgresql.conf', "shared_preload_libraries = 'mixtral'");
$standby->start;
ok(wait_for(sub { scalar(engines($standby)) == 1 }), 'preloaded, the engine starts with the server');
is($standby->safe_psql('postgres', 'SELECT pg_is_in_recovery()'), 't', '... which is a standby');
is($standby->safe_psql('postgres', "SELECT mixtral_chat('hi', max_tokens => 1) IS NOT NULL"), 't', '... and answers');
is(scalar(engines($node)), 1, 'the primary has its own');
$worker = figure($standby, 'worker_pid');
$standby->safe_psql('postgres', "SELECT pg_terminate_backend($worker)");
ok(wait_for(sub { figure($standby, 'state') eq 'serving' && figure($standby, 'worker_pid') ne $worker }, 20), 'a preloaded worker comes back by itself');
my @servers = (engines($node), engines($standby));
$standby->stop;
$standby->append_conf('postgresql.conf', "shared_preload_libraries = ''");
$standby->start;
is($standby->safe_psql('postgres', "SELECT mixtral_chat('hi', max_tokens => 1) IS NOT NULL"), 't', 'a standby without preloading starts it with the first call');
$standby->promote;
is($standby->safe_psql('postgres', "SELECT mixtral_chat('hi', max_tokens => 1) IS NOT NULL"), 't', '... and it goes on after promotion');
$standby->stop;

# ---- An engine elsewhere ----

my $socket = "$PostgreSQL::Test::Utils::tmp_check/e.sock";
my $elsewhere = IPC::Run::start(['mixtral', 'serve', '--model', model('other'), '--socket', $socket], '<', '/dev/null', '>', '/dev/null', '2>', '/dev/null');
ok(wait_for(sub { -S $socket }), 'an engine elsewhere');
set($node, 'mixtral.socket' => $socket);
ok(wait_for(sub { scalar(engines($node)) == 0 || (engines($node))[0] == $elsewhere->{KIDS}[0]{PID} }), 'with mixtral.socket the cluster has none of its own');
is($node->safe_psql('postgres', "SELECT mixtral_chat('hi', max_tokens => 1) IS NOT NULL"), 't', '... and uses that one');
is($node->safe_psql('postgres', 'SELECT count(*) FROM mixtral_models'), '1', '... also for what there is');
$elsewhere->kill_kill;
(undef, $out, $err) = $node->psql('postgres', "SELECT mixtral_chat('hi', max_tokens => 1)");
like($err, qr/no mixtral engine answers at.*HINT:.*mixtral serve --socket/s, '... and says when it is gone');
$node->stop;

done_testing();
