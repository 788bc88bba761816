# 32 sessions that ask at once, for MX_SOAK_SECONDS: no error, nothing that grows; and the ways to many prompts at a time.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/..";
use MixtralTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

my $seconds = $ENV{MX_SOAK_SECONDS};
my $node = new_cluster('load', 'max_connections' => 60, 'mixtral.model' => 'chat=' . model('chat') . ', tiny=' . model('tiny'),
	'mixtral.threads' => 1, 'mixtral.kv_pool' => '32MB');
my $folder = $PostgreSQL::Test::Utils::tmp_check;
my %kinds = (
	chat => "SELECT mixtral_chat('Say hello.', max_tokens => 3);\n",
	tiny => "\\set n random(1, 100000)\nSELECT mixtral_generate('number :n', max_tokens => 20, model => 'tiny');\n",
	stream => "BEGIN;\nDECLARE c CURSOR FOR SELECT mixtral_stream('go on', '{\"ignore_eos\": true}', max_tokens => 100, model => 'tiny');\nFETCH 3 FROM c;\nCOMMIT;\n",
	batch => "SELECT count(text) FROM mixtral_chat_batch(ARRAY['a', 'b', 'c', 'd'], max_tokens => 5, model => 'tiny');\n",
	tokens => "SELECT mixtral_token_count(repeat('word ', 500)), mixtral_embed('word', '{\"model\": \"tiny\"}');\n");
append_to_file("$folder/$_.sql", $kinds{$_}) for keys %kinds;

sub bench
{
	my ($seconds, $out, $err) = @_;
	my @scripts = map { ('-f', "$folder/$_.sql\@" . ($_ eq 'chat' ? 1 : 4)) } sort keys %kinds;
	my $run = IPC::Run::run(['pgbench', '-n', '-c', 32, '-j', 2, '-T', $seconds, @scripts, '-d', $node->connstr('postgres')],
		'>', \$out, '2>', \$err);
	return ($run, $out, $err);
}
my $memory = sub { slurp_file("/proc/$_[0]/status") =~ /RssAnon:\s+(\d+)/; return $1; };
my $descriptors = sub { my @all = glob "/proc/$_[0]/fd/*"; return scalar @all; };

bench(3);    # what is had once, is had now
ok(idle_engine($node, 20), 'the engine is idle after the warm-up');
my ($engine, $worker) = (engine_of($node), figure($node, 'worker_pid'));
sleep 1;    # what has been asked is closed by now
my @before = ($memory->($engine), $descriptors->($engine), $memory->($worker), $descriptors->($worker));
my $done = figure($node, 'requests_done');
my ($ok, $out, $err) = bench($seconds);
ok($ok, "32 sessions for $seconds seconds") or diag($err);
like($out, qr/number of failed transactions: 0 /, '... without an error');
note($out);
cmp_ok(figure($node, 'requests_done') - $done, '>', 10 * $seconds, '... have done something');
is(engine_of($node), $engine, '... with one engine');
ok(idle_engine($node, 20), '... which is idle afterwards');
is($node->safe_psql('postgres', 'SELECT count(*) FROM mixtral_stat_activity'), '0', '... and nobody is left in the activity view');
ok(wait_for(sub { $descriptors->($engine) <= $before[1] }, 10), '... nor a descriptor in the engine');
ok(wait_for(sub { $descriptors->($worker) <= $before[3] }, 10), '... nor in the worker');
cmp_ok($memory->($worker) - $before[2], '<', 1024, '... whose memory has not grown');
cmp_ok($memory->($engine) - $before[0], '<', (2 * 32 + 16) * 1024, '... nor has the engine\'s, but for the pools of its two models');
note("engine: $before[0] KB before, " . $memory->($engine) . ' KB after');

# a parallel plan fills the batch: its workers take page after page of the table
$node->safe_psql('postgres', "CREATE TABLE docs AS SELECT i, 'number ' || i AS body, repeat('-', 1500) AS filler FROM generate_series(1, 40) AS i; ANALYZE docs; ALTER TABLE docs SET (parallel_workers = 4)");
my $parallel = 'SET parallel_setup_cost = 0; SET max_parallel_workers_per_gather = 4;';
like($node->safe_psql('postgres', "$parallel EXPLAIN SELECT mixtral_chat(body, model => 'tiny') FROM docs"), qr/Gather/, 'a query over a table has a parallel plan');
is($node->safe_psql('postgres', "$parallel SELECT count(*), count(a) FROM (SELECT mixtral_chat(body, max_tokens => 4, model => 'tiny') AS a FROM docs OFFSET 0) AS s"), '40|40', '... that works');
my $run = begin_psql($node, "$parallel SELECT mixtral_chat(body, '{\"ignore_eos\": true}', max_tokens => 900) FROM docs");
ok(wait_for(sub { $node->safe_psql('postgres', 'SELECT count(*) > 1 FROM mixtral_stat_activity') eq 't' }), '... with several requests at a time');
$node->safe_psql('postgres', "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE query LIKE '%FROM docs%' AND backend_type = 'client backend' AND pid <> pg_backend_pid()");
isnt(end_psql($run), 0, '... and can be cancelled');
ok(idle_engine($node, 20), '... all of it');

# the recipes, as psql runs them
for my $recipe (qw(pg_rag pg_summarise pg_jobs))
{
	$node->safe_psql('postgres', "DROP DATABASE IF EXISTS recipe; CREATE DATABASE recipe");
	my ($rc, $stdout, $stderr) = (0, '', '');
	my $ran = IPC::Run::run(['psql', '-Xq', '-v', 'ON_ERROR_STOP=1', '-d', $node->connstr('recipe'), '-f', "$ENV{MX_RECIPES}/$recipe.sql"],
		'>', \$stdout, '2>', \$stderr);
	ok($ran, "recipe $recipe") or diag($stderr);
	like($stdout, { pg_rag => qr/answer/, pg_summarise => qr/summary/, pg_jobs => qr/done/ }->{$recipe}, '... shows what it is for');
}
$node->stop;
done_testing();
