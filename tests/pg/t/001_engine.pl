# The engine's life: the first call, what becomes of it when the engine is killed, exchanged, or cannot start.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/..";
use MixtralTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

my $node = new_cluster('engine', max_worker_processes => 6);
my ($out, $err, $run);

# ---- Without a model, without LOAD ----

(undef, $out, $err) = $node->psql('postgres', "SELECT mixtral_chat('hi')");
like($err, qr/there is no model: mixtral.model is not set.*HINT:.*LOAD 'mixtral'; ALTER SYSTEM/s, 'no model: an error with the way out');
is($node->safe_psql('postgres', 'SELECT state, engine_pid IS NULL FROM mixtral_stat_engine'), 'none|t', 'looking starts nothing');
is($node->safe_psql('postgres', 'SELECT count(*) FROM mixtral_models'), '0', 'no models');
(undef, $out, $err) = $node->psql('postgres', "ALTER SYSTEM SET mixtral.model = '/x'");
like($err, $node->pg_version < 17 ? qr/unrecognized configuration parameter/ : qr/^$/, 'before 17 a fresh session does not know the settings');

# ---- 32 first calls at once: one worker, one engine, though there are few worker slots ----

set($node, 'mixtral.model' => model('tiny'), 'mixtral.threads' => 1);
pass('ALTER SYSTEM after LOAD in a fresh session');
my @runs = map { begin_psql($node, "SELECT mixtral_chat('hi', max_tokens => 4) IS NOT NULL;") } 1 .. 32;
my $failures = grep { end_psql($_) != 0 || $_->{out} ne "t\n" } @runs;
is($failures, 0, '32 first calls at once are answered') or diag(map { $_->{err} } @runs);
is(log_count($node, 'starting mixtral engine'), 1, 'one engine was started');
is($node->safe_psql('postgres', "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'mixtral supervisor'"), '1', 'one worker is there');
is(scalar(engines($node)), 1, 'one engine process is there');
like($node->safe_psql('postgres', "SELECT query FROM pg_stat_activity WHERE backend_type = 'mixtral supervisor'"),
	qr/^serving model .*tiny\.gguf with engine process \d+$/, 'the worker says what it does');

# ---- What a backend costs ----

my $session = $node->background_psql('postgres');
my $pid = $session->query_safe('SELECT pg_backend_pid()');
my $memory = sub { slurp_file("/proc/$pid/status") =~ /RssAnon:\s+(\d+)/; return $1; };
my $sockets = sub { return scalar grep { (readlink // '') =~ /^socket:/ } glob "/proc/$pid/fd/*"; };
$session->query_safe("SELECT count(*) FROM pg_proc WHERE proname ~ 'a'; SELECT '{\"a\": 1}'::jsonb");
my $before = $memory->();
my $files = sub { my %files = map { (split)[5] // '' => 1 } split /\n/, slurp_file("/proc/$pid/maps"); return \%files; };
my $server = $files->();    # what a server maps without us
$session->query_safe("SELECT mixtral_chat('hi', max_tokens => 4)");
my $open = $sockets->();
$session->query_safe("SELECT count(mixtral_chat('hi ' || i, max_tokens => 4)) FROM generate_series(1, 50) AS i");
cmp_ok($memory->() - $before, '<', 2048, 'a backend grows by less than 2 MB');
my @threads = glob "/proc/$pid/task/*";
is(scalar @threads, 1, '... and gains no thread');
is($sockets->(), $open, '... and no socket');
unlike(join("\n", grep { !$server->{$_} } keys %{ $files->() }), qr/openblas|sodium|pcre2-8|\.gguf/, '... and loads neither a model nor the libraries of the engine');
my $engine = engine_of($node);
my $score = sub { slurp_file("/proc/$_[0]/oom_score_adj") + 0 };
cmp_ok($score->($engine), '>', $score->($pid), 'the kernel would take the engine before a backend');
is((stat($node->data_dir . '/pg_stat_tmp/mixtral.sock'))[2] & 0777, 0600, 'the socket is the server user\'s alone');
my @inherited = map { readlink } grep { m,/([5-9]|\d\d+)$, } glob "/proc/$engine/fd/*";
is(scalar(grep { m,^\Q@{[ $node->data_dir ]}\E, } @inherited), 0, 'the engine has inherited no file of the cluster');

# ---- kill -9: a request fails, nobody else notices ----

set($node, 'mixtral.model' => model('chat'), 'mixtral.threads' => 2);
ok(wait_for(sub { figure($node, "state || model") eq 'serving' . model('chat') }), 'another model by reload');
ok(wait_for(sub { scalar(engines($node)) == 1 }), 'the old engine goes');
my $started = $node->safe_psql('postgres', 'SELECT pg_postmaster_start_time()');
$engine = engine_of($node);
$run = begin_psql($node, "SELECT mixtral_chat('Count to one thousand.', '{\"ignore_eos\": true}', max_tokens => 4000);");
ok(wait_for(sub { $node->safe_psql('postgres', "SELECT state, tokens > 2 FROM mixtral_stat_activity") eq 'generating|t' }),
	'the activity view shows the request and its tokens');
is($node->safe_psql('postgres', 'SELECT cached FROM mixtral_stat_activity'), '0', '... nothing of whose prompt came from the cache');
is($node->safe_psql('postgres', "SELECT usename = current_user, datname, function, requests FROM mixtral_stat_activity"),
	't|postgres|mixtral_chat|1', '... and whose it is');
is($node->safe_psql('postgres', "SELECT wait_event_type FROM pg_stat_activity WHERE query LIKE '%one thousand%' AND pid <> pg_backend_pid()"),
	'Extension', 'a waiting backend shows a wait event');
kill 'KILL', $engine;
isnt(end_psql($run), 0, 'the engine is killed: its request fails');
like($run->{err}, qr/the mixtral engine was lost while it worked on this request.*HINT:.*started again/s, '... and says so');
is($node->safe_psql('postgres', "SELECT mixtral_chat('hi', max_tokens => 2) IS NOT NULL"), 't', 'the next call is answered');
isnt(engine_of($node), $engine, '... by another engine');
like(figure($node, 'last_error'), qr/terminated by signal 9/, 'the view has the reason');
my $asking = "SELECT mixtral_chat(repeat('A long prompt. ', 40), '{\"ignore_eos\": true}', max_tokens => %d) IS NOT NULL";
$node->safe_psql('postgres', sprintf($asking, 1));
$run = begin_psql($node, sprintf($asking, 4000));
ok(wait_for(sub { $node->safe_psql('postgres', "SELECT cached >= 64 FROM mixtral_stat_activity WHERE state = 'generating'") eq 't' }),
	'of a prompt that is asked again the view shows what came from the cache');
$node->safe_psql('postgres', 'SELECT pg_cancel_backend(pid) FROM mixtral_stat_activity');
end_psql($run);
is($session->query_safe('SELECT 1'), '1', 'other sessions go on');
is($node->safe_psql('postgres', 'SELECT pg_postmaster_start_time()'), $started, 'the server has not restarted');
is($node->safe_psql('postgres', 'SELECT count(*) FROM mixtral_stat_activity'), '0', 'the activity view is empty again');

# a call that comes while nobody serves waits
set($node, 'mixtral.program' => slow_program('slow', 2), 'mixtral.threads' => 1);
ok(wait_for(sub { figure($node, 'retired') eq '0' && engine_of($node) ne '' && log_count($node, 'retired mixtral engine') == 2 }, 60), 'settings by reload');
kill 'KILL', engine_of($node);
$run = begin_psql($node, "SELECT mixtral_chat('hi', max_tokens => 2) IS NOT NULL;");
is(end_psql($run), 0, 'a call while the engine starts waits for it') or diag($run->{err});
like($run->{err}, qr/NOTICE:  waiting for the mixtral engine/, '... and says so');

# ---- Exchange: running requests end where they are ----

set($node, 'mixtral.program' => '', 'mixtral.threads' => 2);
ok(wait_for(sub { log_count($node, 'retired mixtral engine') == 3 }), 'settings by reload');
$run = begin_psql($node, "SELECT completion_tokens FROM mixtral_generate('Count.', '{\"ignore_eos\": true}', max_tokens => 60);");
ok(wait_for(sub { $node->safe_psql('postgres', 'SELECT max(tokens) > 0 FROM mixtral_stat_activity') eq 't' }), 'a request is running');
set($node, 'mixtral.model' => model('tiny'));
ok(wait_for(sub { figure($node, 'model') eq model('tiny') }), 'another model takes over');
is($node->safe_psql('postgres', 'SELECT n_layers FROM mixtral_models'), '2', '... and answers');
is(end_psql($run), 0, 'the request on the old one has ended well') or diag($run->{err});
is($run->{out}, "60\n", '... with all its tokens');
ok(wait_for(sub { scalar(engines($node)) == 1 }), 'the old engine ends then');

# under load no call fails
append_to_file("$PostgreSQL::Test::Utils::tmp_check/chat.sql", "SELECT mixtral_chat('hi', max_tokens => 3);\n");
my $bench = { out => '', err => '' };
$bench->{handle} = IPC::Run::start(['pgbench', '-n', '-c', 8, '-T', 5, '-f', "$PostgreSQL::Test::Utils::tmp_check/chat.sql",
	'-d', $node->connstr('postgres')], '>', \$bench->{out}, '2>', \$bench->{err});
my $exchanged = log_count($node, 'starting mixtral engine');
for my $model (qw(other tiny other))
{
	sleep 1;
	set($node, 'mixtral.model' => model($model));
}
$bench->{handle}->finish;
is($bench->{handle}->result(0), 0, 'three exchanges under eight sessions that ask on') or diag($bench->{err});
like($bench->{out}, qr/number of failed transactions: 0 /, '... and no call fails');
cmp_ok(log_count($node, 'starting mixtral engine'), '>', $exchanged, '... though there were exchanges');
ok(wait_for(sub { figure($node, 'model') eq model('other') && scalar(engines($node)) == 1 }), 'the last one serves, alone');

# a batch goes on with the next engine
$run = begin_psql($node, "SELECT count(text), count(error) FROM mixtral_chat_batch((SELECT array_agg('number ' || i) FROM generate_series(1, 300) AS i), '{\"ignore_eos\": true}', max_tokens => 40)");
ok(wait_for(sub { $node->safe_psql('postgres', "SELECT max(requests) FROM mixtral_stat_activity WHERE function = 'mixtral_chat_batch' AND state = 'generating'") eq '64' }), 'a batch is running, with 64 requests at a time');
set($node, 'mixtral.model' => model('tiny'));
is(end_psql($run), 0, 'it survives an exchange') or diag($run->{err});
is($run->{out}, "300|0\n", '... with all its answers');
is(figure($node, 'model'), model('tiny'), '... from two engines');
set($node, 'mixtral.model' => model('other'));

# another file behind the same name
my $link = "$PostgreSQL::Test::Utils::tmp_check/current.gguf";
system('cp', model('tiny'), $link);
set($node, 'mixtral.model' => $link);
ok(wait_for(sub { figure($node, 'model') eq $link }), 'a copy of a model');
my $identity = $node->safe_psql('postgres', 'SELECT identity FROM mixtral_models');
system('cp', model('other'), "$link.new");
rename("$link.new", $link);
$node->reload;
ok(wait_for(sub { $node->safe_psql('postgres', 'SELECT identity FROM mixtral_models') ne $identity }), 'renaming another file over it, and a reload, exchanges it');

# ---- A bad model: the old engine stays ----

$engine = engine_of($node);
append_to_file("$PostgreSQL::Test::Utils::tmp_check/bad.gguf", "GGUF this is not a model");
set($node, 'mixtral.model' => "$PostgreSQL::Test::Utils::tmp_check/bad.gguf");
ok(wait_for(sub { figure($node, 'last_error') =~ /bad\.gguf/ }), 'a bad model is reported') or diag(figure($node, 'last_error'));
is(engine_of($node), $engine, '... and the old engine stays');
is(figure($node, 'wanted_model'), "$PostgreSQL::Test::Utils::tmp_check/bad.gguf", '... and the view shows what is wanted');
is($node->safe_psql('postgres', "SELECT mixtral_chat('hi', max_tokens => 2) IS NOT NULL"), 't', '... and answers');
is(log_count($node, 'could not be exchanged'), 1, '... and it is tried once');
kill 'KILL', $engine;
is($node->safe_psql('postgres', "SELECT mixtral_chat('hi', max_tokens => 2) IS NOT NULL"), 't', 'killed, the old one is started again');
ok(!-e $node->data_dir . '/pg_stat_tmp/mixtral.sock.new', 'nothing is left of the attempt');

# ---- The socket is removed ----

set($node, 'mixtral.model' => model('tiny'));
ok(wait_for(sub { figure($node, 'model') eq model('tiny') }), 'a good model again');
unlink($node->data_dir . '/pg_stat_tmp/mixtral.sock');
is($node->safe_psql('postgres', "SELECT mixtral_chat('hi', max_tokens => 2) IS NOT NULL"), 't', 'the socket is removed: the next call waits for another');

# ---- No engine at all ----

unlink($link);
set($node, 'mixtral.model' => '');
ok(wait_for(sub { scalar(engines($node)) == 0 }), 'without a model there is no engine');
is(figure($node, 'state'), 'idle', '... and the worker is idle');
set($node, 'mixtral.model' => $link);
# the last one that served is wanted no more, nor there
(undef, $out, $err) = $node->psql('postgres', "SELECT mixtral_chat('hi', max_tokens => 2)");
$session->quit;
$node->stop;
ok(wait_for(sub { scalar(engines($node)) == 0 }, 2), 'no engine outlives the server');
$node->start;
(undef, $out, $err) = $node->psql('postgres', "SELECT mixtral_chat('hi', max_tokens => 2)");
like($err, qr/the mixtral engine does not run.*DETAIL:.*current\.gguf.*HINT:.*pg_reload_conf/s, 'the model file is gone: an error with the reason');
$node->safe_psql('postgres', "CREATE ROLE plain LOGIN; SELECT mixtral_grant('plain')");
(undef, $out, $err) = $node->psql('postgres', "SELECT mixtral_chat('hi', max_tokens => 2)", extra_params => [ '-U', 'plain' ]);
like($err, qr/the mixtral engine does not run/, '... for everybody');
unlike($err, qr/current\.gguf/, '... but which file that is, is not for everybody');
is(figure($node, 'state'), 'failed', '... and the view shows it');
system('cp', model('tiny'), $link);
$node->reload;
is($node->safe_psql('postgres', "SELECT mixtral_chat('hi', max_tokens => 2) IS NOT NULL"), 't', 'the file is there again: a reload is enough');
set($node, 'mixtral.program' => '/nonexistent/mixtral', 'mixtral.threads' => 1);
ok(wait_for(sub { figure($node, 'last_error') =~ m,cannot run /nonexistent/mixtral: No such file, }), 'a program that is not there is reported');

# ---- No worker slot ----

$node->stop;
$node->append_conf('postgresql.conf', "max_worker_processes = 1\nmixtral.program = ''");
$node->start;
(undef, $out, $err) = $node->psql('postgres', "SELECT mixtral_chat('hi', max_tokens => 2)");
like($err, qr/there is no free slot for the mixtral worker.*HINT:.*max_worker_processes/s, 'no worker slot: an error with a hint');
$node->stop;

# ---- The README's recipe as a script, in which the call comes before the reload has ----

$node->append_conf('postgresql.conf', 'max_worker_processes = 8');
$node->start;
my $recipe = "LOAD 'mixtral';\nALTER SYSTEM SET mixtral.model = '" . model('tiny') . "';\nSELECT pg_reload_conf();\nSELECT mixtral_chat('hi', max_tokens => 1) IS NOT NULL;\n";
for my $round (1 .. 5)
{
	$node->safe_psql('postgres', 'ALTER SYSTEM RESET ALL; SELECT pg_reload_conf()');
	ok(wait_for(sub { figure($node, 'state') =~ /^(none|idle)$/ }), "round $round: no model is set");
	is($node->safe_psql('postgres', $recipe), "t\nt", '... and the recipe is answered');
}
$node->safe_psql('postgres', 'ALTER SYSTEM RESET ALL; SELECT pg_reload_conf()');
ok(wait_for(sub { figure($node, 'state') eq 'idle' }), 'without a model again');
(undef, $out, $err) = $node->psql('postgres', "SELECT pg_reload_conf();\nSELECT mixtral_chat('hi', max_tokens => 2)");
like($err, qr/there is no model: mixtral.model is not set/, '... a reload that brings none is no reason to wait on');
$node->stop;

done_testing();
