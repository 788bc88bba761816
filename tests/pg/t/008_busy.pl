# An engine that takes no more: its queue is full, or a role is at its limit. SQLSTATE 53000 at once, and a hint; a batch waits instead.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/..";
use MixtralTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

# A pool of 256 tokens: the first long prompt fills it, the second waits, and the third is one too many.
my $node = new_cluster('busy', 'mixtral.model' => model('chat'), 'mixtral.context' => 256, 'mixtral.kv_pool' => '6MB',
	'mixtral.max_queue' => 1, 'mixtral.threads' => 1);
my $states = sub { return figure($node, "requests_running || ' ' || requests_waiting"); };

# A prompt of about 200 tokens that no other call has in common.
sub ask
{
	my ($role, $max_tokens, $as) = @_;
	return ($as // '') . "SELECT mixtral_chat('$role ' || repeat('word ', 180), '{\"ignore_eos\": true}', max_tokens => $max_tokens) IS NOT NULL";
}

sub refused
{
	my ($sql, @params) = @_;
	my $begin = time;
	my (undef, undef, $err) = $node->psql('postgres', "\\set VERBOSITY verbose\n$sql", extra_params => \@params);
	return ($err, time - $begin);
}

# ---- The queue ----

is($node->safe_psql('postgres', ask('first', 1)), 't', 'an engine with a small queue');
my @runs = (begin_psql($node, ask('running', 30)));
ok(wait_for(sub { $states->() eq '1 0' }), 'one request is running');
push @runs, begin_psql($node, ask('waiting', 30));
ok(wait_for(sub { $states->() eq '1 1' }), '... and one waits') or diag($states->());
my ($err, $seconds) = refused(ask('refused', 30));
like($err, qr/ERROR:  53000: .*queue.*HINT:  Try again in \d+ ms.*mixtral\.max_queue/s, 'a third is refused with 53000, and a hint');
cmp_ok($seconds, '<', 1, '... at once');
is($node->safe_psql('postgres', q{DO $$ BEGIN PERFORM mixtral_chat('caught ' || repeat('word ', 180)); EXCEPTION WHEN insufficient_resources THEN RAISE WARNING 'caught'; END $$; SELECT 1}),
	'1', '... which a program can catch by its class');
is($node->safe_psql('postgres', "SELECT count(text), count(error) FROM mixtral_chat_batch((SELECT array_agg(i || repeat(' word', 180)) FROM generate_series(1, 4) AS i), max_tokens => 2)"),
	'4|0', 'a batch waits until there is room');
is(scalar(grep { end_psql($_) != 0 || $_->{out} ne "t\n" } @runs), 0, 'who was running and waiting is answered');
is($node->safe_psql('postgres', ask('later', 1)), 't', '... and there is room again');

# ---- A role's requests ----

set($node, 'mixtral.max_queue' => 256);
ok(wait_for(sub { figure($node, 'starts') eq '2' && figure($node, 'retired') eq '0' }), 'a queue that is long enough');
$node->safe_psql('postgres', "CREATE ROLE alice LOGIN; CREATE ROLE bob LOGIN; SELECT mixtral_grant('alice'), mixtral_grant('bob');
	LOAD 'mixtral'; ALTER ROLE alice SET mixtral.tenant_requests = 1");
my $run = begin_psql($node, ask('alice', 40), extra => [ '-U', 'alice' ]);
ok(wait_for(sub { $states->() eq '1 0' }), 'a role with one request at a time has one');
($err, $seconds) = refused(ask('again', 1), '-U', 'alice');
like($err, qr/ERROR:  53000: .*HINT:  .*mixtral\.tenant_/s, '... and another is refused with 53000');
cmp_ok($seconds, '<', 1, '... at once');
is($node->psql('postgres', ask('bob', 1), extra_params => [ '-U', 'bob' ]), 0, 'another role waits its turn, and is answered');
is(end_psql($run), 0, 'the one that was there is answered') or diag($run->{err});
is($node->psql('postgres', ask('again', 1), extra_params => [ '-U', 'alice' ]), 0, '... and then there is room for the next');

# ---- A role's tokens a minute ----

$node->safe_psql('postgres', "LOAD 'mixtral'; ALTER ROLE bob SET mixtral.tenant_tokens_per_minute = 100");
refused(ask('bob spends', 8), '-U', 'bob');
($err, $seconds) = refused(ask('bob wants', 8), '-U', 'bob');
like($err, qr/ERROR:  53000: .*HINT:  Try again in \d+ ms/s, 'a role that has spent its tokens: 53000, and when to come again');
cmp_ok($seconds, '<', 1, '... at once');
$node->stop;
done_testing();
