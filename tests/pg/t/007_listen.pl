# The second socket, for other programs: who gets in and as whom, reloads, and whatever happens to the engine and to the file.
#
# Another user asks through a process that tests/pg/run has started, see other_user.py. Without root there is none.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/..";
use IO::Socket::UNIX;
use JSON::PP;
use MixtralTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_cluster('listen', 'mixtral.model' => model('tiny'));
my $folder = $PostgreSQL::Test::Utils::tmp_check;
my $path = "$folder/a.sock";
my $group = $ENV{MX_TEST_GROUP} // getgrgid((split ' ', $))[0]);
my $gid = getgrnam($group);
my $other = $ENV{MX_TEST_OTHER_UID};

# The engine's answer to another user, or to our own where there is no other.
sub ask
{
	my ($socket_path, $request) = @_;
	$request //= { op => 'token_count', text => 'some text' };
	my $proxy = IO::Socket::UNIX->new(Peer => $ENV{MX_TEST_OTHER}) or die "no other user: $!";
	print $proxy encode_json({ path => $socket_path, request => $request }), "\n";
	return decode_json(scalar <$proxy>);
}

# An answer for our own user, by the real command line; undef: none.
sub own
{
	my $socket_path = shift;
	my ($out, $err) = ('', '');
	my $ok = IPC::Run::run([ 'mixtral', 'complete', "unix:$socket_path", 'hi', '--max-tokens', 2 ], '<', '/dev/null', '>', \$out, '2>', \$err,
		IPC::Run::timeout(60));
	return $ok ? $out : undef;
}

sub access_of
{
	my @st = stat $_[0] or return 'none';
	return sprintf '%s %04o %s', -S _ ? 'socket' : 'file', $st[2] & 07777, $st[5] == $gid ? 'right group' : $st[5];
}

sub listen_at { set($node, 'mixtral.listen' => $_[0]); }

# What becomes of a prompt that a peer asks as two tenants, one after the other: 0 cached tokens, or the refusal.
my $asked = 0;

sub as_second_tenant
{
	my $prompt = 'Prompt number ' . ++$asked . ', which is long enough to fill a few blocks of the pool. ' x 4;
	my @answers = map { ask($path, { op => 'complete', prompt => $prompt, options => { tenant => $_, max_tokens => 1 } }) } qw(one two);
	return $answers[1]{cached_tokens} // $answers[1]{status};
}

# ---- What the setting takes ----

my %wrong = (
	'mixtral.sock' => 'Expected an absolute path, got "mixtral.sock"',
	'mode=0660 /run/x' => 'Expected an absolute path, got "mode=0660"',
	'/' . 'x' x 107 => 'A socket\'s path has at most 107 bytes, this one has 108',
	'/run/x mode=0999' => 'mode: expected an octal number such as 0660, got "0999"',
	'/run/x mode=' => 'mode: expected an octal number such as 0660, got ""',
	'/run/x mode=01777' => 'mode: expected an octal number such as 0660, got "01777"',
	'/run/x group=' => 'group: expected a name of 1 to 63 bytes, got ""',
	'/run/x uids=33,' => 'uids: expected at most 64 user numbers with commas between, got "33,"',
	'/run/x uids=www-data' => 'uids: expected at most 64 user numbers with commas between, got "www-data"',
	'/run/x uids=-1' => 'uids: expected at most 64 user numbers with commas between, got "-1"',
	'/run/x uids=4294967296' => 'uids: expected at most 64 user numbers with commas between, got "4294967296"',
	'/run/x uids=' . join(',', 1 .. 65) => 'uids: expected at most 64 user numbers with commas between',
	'/run/x mode=0660 mode=0600' => 'Expected mode=, group= and uids= after the path, each at most once, got "mode=0600"',
	'/run/x y.sock' => 'Expected mode=, group= and uids= after the path, each at most once, got "y.sock"',
	'/run/x ' . 'y' x 2000 => 'An option has at most 767 bytes, this one has 2000');
for my $value (sort keys %wrong)
{
	my (undef, undef, $err) = $node->psql('postgres', "LOAD 'mixtral';\n\\set VERBOSITY verbose\nALTER SYSTEM SET mixtral.listen = '$value'");
	like($err, qr/ERROR:  22023: invalid value for parameter "mixtral.listen".*DETAIL:  \Q$wrong{$value}\E/s, 'refused: ' . substr($value, 0, 40));
}
like(($node->psql('postgres', "LOAD 'mixtral'; SET mixtral.listen = '$path'"))[2], qr/cannot be changed now/, 'it is the server\'s, not a session\'s');
$node->safe_psql('postgres', 'CREATE ROLE plain LOGIN');
like(($node->psql('postgres', "SELECT mixtral_version(); SHOW mixtral.listen", extra_params => [ '-U', 'plain' ]))[2], qr/must be superuser|permission denied to examine/, '... and for superusers to see');

# ---- Made while the engine runs, by reload ----

is($node->safe_psql('postgres', "SELECT mixtral_chat('hi', max_tokens => 1) IS NOT NULL"), 't', 'an engine without a second socket');
listen_at("$path mode=0640 group=$group uids=" . ($other // 12345));
ok(wait_for(sub { -S $path && figure($node, 'starts') eq '2' && figure($node, 'retired') eq '0' }), 'a reload makes the socket, and an engine that has it');
is(access_of($path), 'socket 0640 right group', '... with the mode and the group');
ok(defined own($path), '... where a client is answered');
is($node->safe_psql('postgres', "SELECT mixtral_chat('hi', max_tokens => 1) IS NOT NULL"), 't', '... and sessions are, too');

my $engine = engine_of($node);
listen_at("$path group=$group uids=" . ($other // 12345));
ok(wait_for(sub { access_of($path) eq 'socket 0660 right group' }), 'another mode, in place; 0660 where none is given');
is(engine_of($node), $engine, '... with the same engine');

SKIP:
{
	skip 'only root can be another user', 9 unless defined $other;
	is(ask($path)->{count} > 0, 1, 'another user, of that group, is answered');
	is(as_second_tenant(), '0', '... and may name tenants, as uids says');
	listen_at("$path group=$group uids=1,2,3");
	ok(wait_for(sub { engine_of($node) ne $engine && figure($node, 'retired') eq '0' }), 'other uids: another engine');
	is(as_second_tenant(), 'denied', '... at which it may not');
	$engine = engine_of($node);
	listen_at("$path mode=0600 group=$group uids=1,2,3");
	ok(wait_for(sub { access_of($path) eq 'socket 0600 right group' }), 'a mode without the group');
	like(ask($path)->{refused}, qr/Permission denied/, '... shuts that user out');
	ok(defined own($path), '... and not our own');
	listen_at("$path mode=0666");
	ok(wait_for(sub { access_of($path) =~ /^socket 0666 (?!right)/ && engine_of($node) ne $engine && figure($node, 'retired') eq '0' }),
		'a mode for all, and the server\'s own group again');
	is(ask($path)->{count} > 0, 1, '... lets it in');
}

# ---- The engine dies, or is exchanged under a running answer ----

listen_at("$path mode=0666");
ok(wait_for(sub { access_of($path) =~ /^socket 0666/ && figure($node, 'retired') eq '0' }), 'without uids');
$engine = engine_of($node);
kill 'KILL', $engine;
ok(defined own($path), 'the engine is killed: a client at the socket waits for the next one');
isnt(engine_of($node), $engine, '... which it is');
my ($out, $err) = ('', '');
my $run = IPC::Run::start([ 'mixtral', 'complete', "unix:$path", 'go on', '--max-tokens', 900, '--option', 'ignore_eos=true' ], '<', '/dev/null', '>', \$out, '2>', \$err);
ok(wait_for(sub { figure($node, 'requests_running') eq '1' }), 'a client is being answered');
set($node, 'mixtral.model' => model('other'));
ok(wait_for(sub { figure($node, 'model') eq model('other') }), 'another model');
ok($run->finish, '... and its answer comes to its end') or diag($err);
ok(defined own($path), '... and the next is answered, too');

# ---- The file ----

my $inode = (stat $path)[1];
unlink $path;
ok(wait_for(sub { -S $path && figure($node, 'retired') eq '0' && figure($node, 'state') eq 'serving' }), 'removed, it is made again');
ok(defined own($path), '... and answers');
is(access_of($path) =~ /^socket 0666/, 1, '... with the same mode');
is(log_count($node, quotemeta($path) . '" has been removed'), 1, '... and the log says so');
is(engines($node), 1, '... with one engine');

my $second = "$folder/b.sock";
listen_at("$second mode=0600");
ok(wait_for(sub { -S $second && defined own($second) }), 'another path');
ok(!-e $path, '... and the old one is gone');

append_to_file($path, "a file\n");
listen_at($path);
ok(wait_for(sub { figure($node, 'last_error') =~ /mixtral\.listen: "\Q$path\E" is there, and is not a socket/ }), 'a file at the path is reported');
is(slurp_file($path), "a file\n", '... and left alone');
is($node->safe_psql('postgres', "SELECT mixtral_chat('hi', max_tokens => 1) IS NOT NULL"), 't', '... and sessions are answered');
is(log_count($node, 'is there, and is not a socket'), 1, '... and it is said once');
unlink $path;
ok(wait_for(sub { -S $path }), 'the file is gone: the socket is made without a reload');
ok(defined own($path), '... and answers');

# ---- Sockets of others ----

listen_at('');
ok(wait_for(sub { !-e $path }), 'no setting, no socket');
{ my $stale = IO::Socket::UNIX->new(Local => $path, Listen => 1) or die; }
ok(-S $path, 'a socket that nobody listens at');
listen_at($path);
ok(wait_for(sub { defined own($path) }), '... is replaced');
my $foreign = IO::Socket::UNIX->new(Local => $second, Listen => 100) or die;
listen_at($second);
ok(wait_for(sub { figure($node, 'last_error') =~ /another process listens at "\Q$second\E"/ }), 'one at which somebody listens is reported');
ok(defined IO::Socket::UNIX->new(Peer => $second), '... and left alone: it still reaches who made it');
close $foreign;
ok(wait_for(sub { defined own($second) }), '... until that is gone');

listen_at("$path group=no-such-group");
ok(wait_for(sub { figure($node, 'last_error') =~ /mixtral\.listen: group "no-such-group" does not exist/ }), 'a group that does not exist is reported');
ok(wait_for(sub { defined own($path) }), '... and the rest works');
listen_at("$folder/none/x.sock");
ok(wait_for(sub { figure($node, 'last_error') =~ m,could not listen at ".*/none/x\.sock": No such file, }), 'so is a folder that does not exist');
mkdir "$folder/none";
ok(wait_for(sub { defined own("$folder/none/x.sock") }), '... and when it does, there is the socket');

# ---- The end ----

listen_at($path);
ok(wait_for(sub { defined own($path) }), 'before the end');
$node->stop('immediate');
ok(-e $path, 'an immediate shutdown cannot clean up');
$node->start;
$node->safe_psql('postgres', "SELECT mixtral_chat('hi', max_tokens => 1)");
ok(wait_for(sub { defined own($path) }), '... and the next server replaces what is left');
is(figure($node, 'starts'), '1', '... at once');
$node->stop;
ok(!-e $path, 'a shutdown in order removes it');

done_testing();
