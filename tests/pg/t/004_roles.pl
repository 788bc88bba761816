# Who may do what, who sees what, and what two roles learn of each other; encodings.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/..";
use MixtralTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use utf8;
use Time::HiRes qw(sleep time);

my $node = new_cluster('roles', 'mixtral.model' => 'tiny=' . model('tiny') . ', other=' . model('other'));
my ($out, $err);

sub as_role
{
	my ($role, $sql, $database) = @_;
	my ($rc, $stdout, $stderr) = $node->psql($database // 'postgres', $sql, extra_params => [ '-U', $role ]);
	return $rc == 0 ? $stdout : "ERROR " . $stderr;
}

$node->safe_psql('postgres', 'CREATE ROLE alice LOGIN; CREATE ROLE bob LOGIN; CREATE ROLE watch LOGIN IN ROLE pg_read_all_stats');

# ---- Rights ----

for my $call ("mixtral_chat('hi')", "mixtral_chat('[]'::jsonb)", "mixtral_complete('hi')", "mixtral_generate('hi')", "mixtral_stream('hi')",
	"mixtral_embed('hi')", "mixtral_tokenize('hi')", "mixtral_chat_batch(ARRAY['hi'])", "mixtral_grant('alice')")
{
	like(as_role('alice', "SELECT $call"), qr/permission denied for function/, "not for everybody: $call");
}
is(as_role('alice', 'SELECT state FROM mixtral_stat_engine'), 'none', 'the views are for everybody');
$node->safe_psql('postgres', "SELECT mixtral_grant('alice'), mixtral_grant('bob')");
is(as_role('alice', "SELECT mixtral_chat('hi', max_tokens => 1) IS NOT NULL, mixtral_chat('[{\"role\": \"user\", \"content\": \"hi\"}]'::jsonb, max_tokens => 1) IS NOT NULL"),
	't|t', 'mixtral_grant grants all overloads');
like(as_role('alice', "SELECT mixtral_grant('bob')"), qr/permission denied/, '... but not itself');
$node->safe_psql('postgres', "SELECT mixtral_revoke('bob')");
like(as_role('bob', "SELECT mixtral_chat('hi')"), qr/permission denied/, 'mixtral_revoke');
$node->safe_psql('postgres', "SELECT mixtral_grant('bob')");
like(as_role('alice', 'SELECT mixtral_version(); SET mixtral.max_tokens_limit = 0'), qr/permission denied to set parameter/, 'limits are the superuser\'s');
like(as_role('alice', 'SELECT mixtral_version(); SHOW mixtral.model'), qr/must be superuser|permission denied to examine/, 'where the model lies is not for everybody');
is(as_role('alice', 'SELECT model IS NULL, wanted_model IS NULL FROM mixtral_stat_engine'), 't|t', '... nor in the view');
is(as_role('watch', 'SELECT model IS NULL FROM mixtral_stat_engine'), 'f', '... but for who reads all statistics');

# ---- Two models ----

is($node->safe_psql('postgres', 'SELECT string_agg(name, $$,$$ ORDER BY name) FROM mixtral_models'), 'other,tiny', 'two models in one engine');
is($node->safe_psql('postgres', "SELECT model FROM mixtral_generate('hi', max_tokens => 1)"), 'tiny', '... the first answers');
is($node->safe_psql('postgres', "SELECT model FROM mixtral_generate('hi', max_tokens => 1, model => 'other')"), 'other', '... or the one that is named');

# ---- Activity ----

my $run = begin_psql($node, "SELECT count(mixtral_chat('hi', '{\"ignore_eos\": true}', max_tokens => 900)) FROM generate_series(1, 1000)", extra => [ '-U', 'alice' ]);
ok(wait_for(sub { as_role('watch', 'SELECT DISTINCT usename FROM mixtral_stat_activity') eq 'alice' }), 'pg_read_all_stats sees everybody');
is(as_role('bob', 'SELECT count(*) FROM mixtral_stat_activity'), '0', 'a role does not see another\'s requests');
ok(wait_for(sub { as_role('alice', 'SELECT DISTINCT usename FROM mixtral_stat_activity') eq 'alice' }), '... but its own');
$node->safe_psql('postgres', "SELECT pg_cancel_backend(pid) FROM mixtral_stat_activity");
end_psql($run);

# ---- Tenants: the time an answer takes tells nobody what another has asked ----

my $prompt = 'A prompt that is long enough to fill a few blocks. ' x 6;
my $cached = sub { my ($role, $before) = @_; return as_role($role, ($before // '') . "SELECT cached_tokens FROM mixtral_generate('$prompt', max_tokens => 1)"); };
is($cached->('alice'), '0', 'a new prompt');
cmp_ok($cached->('alice'), '>', 0, '... is remembered for its role');
is($cached->('bob'), '0', '... and for no other');
like(as_role('bob', "SELECT cached_tokens FROM mixtral_generate('$prompt', jsonb_build_object('tenant', 'pg:' || (SELECT system_identifier FROM pg_control_system()) || ':' || 'alice'::regrole::oid), max_tokens => 1)"),
	qr/^0$|permission denied/, 'no role can name another\'s tenant');
is($node->safe_psql('postgres', "SELECT cached_tokens FROM mixtral_generate('$prompt', jsonb_build_object('tenant', 'pg:' || (SELECT system_identifier FROM pg_control_system()) || ':' || 'alice'::regrole::oid), max_tokens => 1)"),
	'0', '... not even a superuser');
$node->safe_psql('postgres', "CREATE FUNCTION through() RETURNS int SECURITY DEFINER LANGUAGE sql AS \$\$ SELECT cached_tokens FROM mixtral_generate('$prompt', max_tokens => 1) \$\$; ALTER FUNCTION through() OWNER TO alice");
is(as_role('bob', 'SELECT through()'), '0', 'a SECURITY DEFINER function is no way into its owner\'s tenant');
$node->safe_psql('postgres', "LOAD 'mixtral'; ALTER ROLE alice SET mixtral.shared_prefix_tenant = 'team'; ALTER ROLE bob SET mixtral.shared_prefix_tenant = 'team'");
is($cached->('alice'), '0', 'a shared tenant begins empty');
cmp_ok($cached->('bob'), '>', 0, '... and is shared');

# ---- Limits of a role ----

$node->safe_psql('postgres', "LOAD 'mixtral'; ALTER ROLE bob SET mixtral.tenant_tokens_per_minute = 50; ALTER ROLE bob RESET mixtral.shared_prefix_tenant");
as_role('bob', "SELECT mixtral_chat('hi', '{\"ignore_eos\": true}', max_tokens => 60)");
like(as_role('bob', "SELECT mixtral_chat('hi', max_tokens => 40)"), qr/tokens.*HINT:.*Try again in \d+ ms/s, 'a role over its tokens a minute is told when to come again');
like(as_role('bob', "SELECT mixtral_chat('hi', '{\"tenant\": \"x\"}')"), qr/option tenant: not to be given/, '... and cannot become another tenant');
like(as_role('bob', "SELECT mixtral_chat('hi', '{\"tenant_tokens_per_minute\": 0}')"), qr/not to be given in a call/, '... nor set its own limit');
is(as_role('alice', "SELECT mixtral_chat('hi', max_tokens => 1) IS NOT NULL"), 't', 'the other role is not held up');

# ---- Encodings ----

$node->safe_psql('postgres', "CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0; CREATE DATABASE ascii ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0");
$node->safe_psql($_, 'CREATE EXTENSION mixtral') for qw(latin ascii);
is($node->safe_psql('latin', "SET client_encoding = 'UTF8'; SELECT mixtral_detokenize(mixtral_tokenize(U&'caf\\00e9')) = U&'caf\\00e9'"), 't', 'LATIN1: there and back');
is($node->safe_psql('latin', "SELECT mixtral_token_count(U&'caf\\00e9')"), $node->safe_psql('postgres', "SELECT mixtral_token_count(U&'caf\\00e9')"), '... as the tokens that UTF-8 has');
my $ids = $node->safe_psql('postgres', "SELECT mixtral_tokenize(U&'a\\2603b\\+01F600c')");
is($node->safe_psql('latin', "SELECT mixtral_detokenize('$ids')"), 'a?b?c', '... and what it cannot hold is a question mark');
is($node->safe_psql('ascii', "SELECT encode(convert_to(mixtral_detokenize('$ids'), 'SQL_ASCII'), 'hex')"), '61e2988362f09f988063', 'SQL_ASCII: bytes as they are');
like(($node->psql('ascii', "SELECT mixtral_token_count(E'\\xff')"))[2], qr/invalid byte sequence for encoding "UTF8"/, '... which must be UTF-8 on the way in');
$node->stop;

done_testing();
