# Whatever ends a call, in whatever phase: its caller has the error at once, the engine forgets the request, nothing leaks.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/..";
use MixtralTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

my $AT_ONCE = 0.2;    # seconds; the best of three, for this machine may be busy with something else
my $node = new_cluster('cancel', 'mixtral.model' => model('chat'));
$node->safe_psql('postgres', "SELECT mixtral_chat('hi', max_tokens => 1)");

my $long_answer = "SELECT mixtral_chat('Count.', '{\"ignore_eos\": true}', max_tokens => 5000)";
my $long_prompt = "SELECT mixtral_chat(repeat('word ', 7000) || random(), max_tokens => 4)";
my $stream = "SELECT count(*) FROM (SELECT mixtral_stream('Count.', '{\"ignore_eos\": true}', max_tokens => 5000) OFFSET 0) AS s";
my $batch = "SELECT count(*) FROM mixtral_chat_batch(ARRAY['a', 'b', 'c'], '{\"ignore_eos\": true}', max_tokens => 5000)";
my %phases = (answer => $long_answer, prompt => $long_prompt, stream => $stream, batch => $batch);

# Ends what a backend does, and gives the seconds until it does it no more: measured in the server, where no process has to start.
$node->safe_psql('postgres', q{
	CREATE FUNCTION end_it(backend int, way text) RETURNS float8 LANGUAGE plpgsql AS $$
	DECLARE
		begun timestamptz := clock_timestamp();
	BEGIN
		EXECUTE format('SELECT pg_%s_backend(%s)', way, backend);
		LOOP
			PERFORM pg_stat_clear_snapshot();
			EXIT WHEN NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = backend AND state = 'active')
				OR clock_timestamp() > begun + interval '30 s';
			PERFORM pg_sleep(0.002);
		END LOOP;
		RETURN extract(epoch FROM clock_timestamp() - begun);
	END $$});

# Runs the statement, ends it when it is in that state, and tells how long that took and what was said.
sub ended
{
	my ($control, $sql, $state, $way) = @_;
	my $run = begin_psql($node, $sql);
	my $pid;
	wait_for(sub { ($pid = $node->safe_psql('postgres', "SELECT pid FROM mixtral_stat_activity WHERE state = '$state' LIMIT 1")) ne '' })
	  or return (99, 'never got there: ' . $run->{err});
	my $took = $control->query_safe("SELECT end_it($pid, '$way')");
	end_psql($run);
	return ($took, $run->{err});
}

my $control = $node->background_psql('postgres', on_error_stop => 0);
for my $phase (sort keys %phases)
{
	my $state = $phase eq 'prompt' ? 'waiting' : 'generating';
	for my $way (qw(cancel terminate))
	{
		my ($best, $said) = (99, '');
		for (1 .. 3)
		{
			(my $took, $said) = ended($control, $phases{$phase}, $state, $way);
			$best = $took if $took < $best;
			last if $best < $AT_ONCE;
		}
		cmp_ok($best, '<', $AT_ONCE, "$way, $phase: at once");
		like($said, $way eq 'cancel' ? qr/canceling statement due to user request/ : qr/terminating connection/, "$way, $phase: the error");
		ok(idle_engine($node, 10), "$way, $phase: the engine has nothing left of it");
	}
}

# statement_timeout, measured by the session itself
my $session = $node->background_psql('postgres', on_error_stop => 0);
my $pid = $session->query_safe('SELECT pg_backend_pid()');
my $sockets = sub { return scalar grep { (readlink // '') =~ /^socket:/ } glob "/proc/$pid/fd/*"; };
my $open = $sockets->();
for my $phase (sort keys %phases)
{
	my $best = 99;
	$session->query("SET statement_timeout = '300ms'");
	for (1 .. 3)
	{
		my $begin = time;
		$session->query($phases{$phase});
		$best = time - $begin if time - $begin < $best;
		last if $best < 0.3 + $AT_ONCE;
	}
	$session->query('RESET statement_timeout');
	like($session->{stderr}, qr/canceling statement due to statement timeout/, "statement_timeout, $phase: the error");
	$session->{stderr} = '';
	cmp_ok($best, '<', 0.3 + $AT_ONCE, "statement_timeout, $phase: at once");
}
ok(idle_engine($node, 10), 'statement_timeout: the engine has nothing left');

# an error, a savepoint, a cursor: the session goes on with the descriptors that it had
$session->query_safe(
	q{DO $$ BEGIN
		FOR i IN 1 .. 20 LOOP
			BEGIN PERFORM mixtral_chat('hi', temperature => 1000); EXCEPTION WHEN OTHERS THEN NULL; END;
			BEGIN PERFORM 1 / (length(mixtral_stream('Count.', max_tokens => 50)) * 0); EXCEPTION WHEN division_by_zero THEN NULL; END;
		END LOOP;
	END $$;});
$session->query_safe(
	q{BEGIN; DECLARE c CURSOR FOR SELECT mixtral_stream('Count.', '{"ignore_eos": true}', max_tokens => 5000);
	SAVEPOINT s; DECLARE d CURSOR FOR SELECT mixtral_stream('Count.', '{"ignore_eos": true}', max_tokens => 5000);
	FETCH 3 FROM c; FETCH 3 FROM d;});
cmp_ok($sockets->(), '==', $open + 2, 'two open cursors have a connection each');
$session->query_safe('ROLLBACK TO s; FETCH 1 FROM c;');
is($sockets->(), $open + 1, 'a rolled back savepoint closes its own');
$session->query_safe('ROLLBACK');
is($sockets->(), $open, 'a rollback closes the other');
ok(idle_engine($node, 10), '... and the engine has nothing left');
$session->query_safe('BEGIN; DECLARE c CURSOR FOR SELECT mixtral_stream($$Count.$$, $${"ignore_eos": true}$$, max_tokens => 5000); FETCH 2 FROM c; CLOSE c;');
is($sockets->(), $open, 'a closed cursor closes its connection');
$session->query_safe('COMMIT');
is($session->query_safe(q{SELECT count(*) FROM (SELECT mixtral_stream('Count.', '{"ignore_eos": true}', max_tokens => 5000) LIMIT 3) AS s}), '3', 'LIMIT');
is($sockets->(), $open, '... closes it as well');
ok(idle_engine($node, 10), '... and ends the generation');

# the client goes away in the middle
my $run = begin_psql($node, $long_answer);
my $backend = backend_of($node, '%Count%');
ok(wait_for(sub { $node->safe_psql('postgres', "SELECT state FROM mixtral_stat_activity WHERE pid = $backend") eq 'generating' }), 'a client that will be killed');
my $client = $run->{handle}->{KIDS}[0]{PID};
my $killed = time;
kill 'KILL', $client;
ok(wait_for(sub { !is_alive($backend) }, 10), 'its backend ends');
cmp_ok(time - $killed, '<', 2, '... soon');
eval { $run->{handle}->finish };
ok(idle_engine($node, 10), '... and the engine has nothing left');

# while the engine is being started
set($node, 'mixtral.program' => slow_program('slow', 4));
ok(wait_for(sub { figure($node, 'retired') eq '0' && log_count($node, 'retired mixtral') == 1 }, 30),
	'an engine that starts slowly');
kill 'KILL', engine_of($node);
my $best = 99;
for (1 .. 3)
{
	my $begin = time;
	$session->query("SET statement_timeout = '300ms'");
	$session->query("SELECT mixtral_chat('hi')");
	$best = time - $begin if time - $begin < $best;
	last if $best < 0.3 + $AT_ONCE;
}
cmp_ok($best, '<', 0.3 + $AT_ONCE, 'statement_timeout while the engine is started');
$session->query('RESET statement_timeout');
is($sockets->(), $open, '... leaves no descriptor');
$session->{stderr} = '';
is($session->query("SELECT mixtral_chat('hi', max_tokens => 1) IS NOT NULL"), 't', 'a call that waits on is answered');

$control->quit;
$session->quit;
$node->stop;
done_testing();
